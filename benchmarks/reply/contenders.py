"""The contenders of request/reply, each started as its users start it and stopped after its round.

None runs beside another: an idle one costs the broker and the machine something too.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson
import yaml
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.case import ONE_THREAD, ROOT, RunFailed
from benchmarks.reply import millisecond_plugin
from benchmarks.reply.context import Context
from benchmarks.reply.exchanges import (
    ONNX_FILE,
    Exchange,
    same_numbers,
    wine_table,
    wines,
)
from benchmarks.reply.http_load import HOST
from benchmarks.reply.http_responses import Response
from tests.kafka_server import free_ports

WINE_CONF: Final = ROOT / "samples/sklearn_wine/onnx/conf.yaml"

JSON: Final = "application/json"

_REQUEST_PARTITIONS: Final = 4  # as the product makes them
_DIFFERENT: Final = 256
_START_TIMEOUT: Final = 120.0
_STOP_TIMEOUT: Final = 30.0
_KAFKA_TIMEOUT: Final = 30.0
_LOOK_EVERY: Final = 0.005


class ContenderFailed(RunFailed):
    """A contender did not start, or ended by itself; the text ends with its log."""


@dataclass(frozen=True, slots=True)
class Running:
    """A contender that answers.

    Attributes:
        port: where.
        exchanges: what to ask it, and the right answers.
        pids: its processes; their descendants are its too.
    """

    port: int
    exchanges: Sequence[Exchange]
    pids: tuple[int, ...]


class Process:
    """A command with its output in a file, and when it was started (monotonic seconds)."""

    def __init__(self, log: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self.began = time.monotonic()
            self.popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **ONE_THREAD, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A session of its own: those that it starts can be ended with it.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait for what it will do.

        Raises:
            ContenderFailed: it ended, or took too long.
        """
        while not done():
            late = time.monotonic() - self.began > _START_TIMEOUT
            if late or self.popen.poll() is not None:
                end = "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])
                raise ContenderFailed(f"{'too late' if late else 'ended'}; its log:\n{end}")
            time.sleep(_LOOK_EVERY)

    def stop(self) -> None:
        """End it and all that it started."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)
                self.popen.wait()


@contextmanager
def process(log: Path, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Process]:
    """A command that runs within the block."""
    started = Process(log, command, environment)
    try:
        yield started
    finally:
        started.stop()


def answers(port: int, exchange: Exchange) -> bool:
    """Whether the right answer comes to a request."""
    head, _, body = exchange.request.partition(b"\r\n\r\n")
    method, path, _ = head.decode().split(" ", 2)
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return exchange.is_right(Response(response.status, response.read()))
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@cache
def wine_exchanges(path: str, wrap: str | None = None) -> list[Exchange]:
    """The wine requests for a contender.

    Args:
        path: where it takes them.
        wrap: the key under which it wants the table; ``None`` where it takes the table itself.
    """

    def exchange(rows: list[list[float]], qualities: list[float]) -> Exchange:
        def is_right(body: bytes) -> bool:
            try:
                given = orjson.loads(body)
            except orjson.JSONDecodeError:
                return False
            return same_numbers(_flat(given), qualities)

        table = wine_table(rows)
        return Exchange(path, orjson.dumps({wrap: table} if wrap else table), JSON, is_right)

    return [exchange(rows, qualities) for rows, qualities in wines(_DIFFERENT)]


def _flat(given: Any) -> object:
    """The list of qualities, also out of MLflow's: a column for the model's one output."""
    if isinstance(given, dict):
        column = given["predictions"]["variable"]
        return [quality for (quality,) in column]
    return given


def number_exchanges(path: str) -> list[Exchange]:
    """The requests of the model that takes a millisecond."""

    def exchange(number: int) -> Exchange:
        right = str(millisecond_plugin.answer(number)).encode()
        body = str(number).encode()
        return Exchange(path, body, millisecond_plugin.CONTENT_TYPE, lambda given: given == right)

    return [exchange(number) for number in range(_DIFFERENT)]


@contextmanager
def floor(context: Context, linger: int, flush: bool) -> Iterator[Running]:
    """The bare facade and worker.

    Args:
        context: where.
        linger: ``linger.ms`` on both sides.
        flush: whether both send at once what they have in hand all the same.
    """
    name = f"floor-{secrets.token_hex(4)}"
    topics = {f"{name}-requests": _REQUEST_PARTITIONS, f"{name}-replies": 1}
    _create(context.bootstrap, topics)
    requests, replies = topics
    environment = {
        "FLOOR_BOOTSTRAP": context.bootstrap,
        "FLOOR_REQUESTS": requests,
        "FLOOR_REPLIES": replies,
        "FLOOR_LINGER": str(linger),
        "FLOOR_FLUSH": "1" if flush else "",
    }
    (port,) = free_ports(1)
    ready = context.folder / f"{name}.ready"
    worker_command = [
        *(sys.executable, "-m", "benchmarks.reply.floor_worker"),
        *(str(ONNX_FILE), str(ready)),
    ]
    facade_command = [
        *(sys.executable, "-m", "gunicorn", "--worker-class", "asgi", "--workers", "1"),
        *("--no-control-socket", "--bind", f"{HOST}:{port}", "benchmarks.reply.floor_facade:app"),
    ]
    exchanges = wine_exchanges("/predict")
    with (
        process(context.folder / f"{name}-worker.log", worker_command, environment) as worker,
        process(context.folder / f"{name}-facade.log", facade_command, environment) as facade,
    ):
        worker.wait_until(ready.exists)
        facade.wait_until(lambda: answers(port, exchanges[0]))
        yield Running(port, exchanges, (worker.pid, facade.pid))


@dataclass(frozen=True, slots=True)
class Product:
    """The product's two processes, and how it is asked."""

    running: Running
    worker: Process
    facade: Process
    seconds_until_worker_ready: float


@contextmanager
def product(
    context: Context,
    exchanges: Sequence[Exchange] | None = None,
    conf: Path = WINE_CONF,
    **settings: str,
) -> Iterator[Product]:
    """A worker and a facade of the product, with their default settings.

    Args:
        context: where.
        exchanges: what it is asked; wines where not given.
        conf: the conf file.
        settings: more ``SCORER_`` variables, by the rest of their name in small letters.
    """
    name = f"product-{secrets.token_hex(4)}"
    (port,) = free_ports(1)
    ready = context.folder / f"{name}.ready"
    variables = {
        "kafka_bootstrap_servers": context.bootstrap,
        "host": HOST,
        "port": str(port),
        "worker_group": name,
        "worker_ready_file": str(ready),
        "topics_requests": f"{name}-requests",
        "topics_results": f"{name}-results",
        "topics_replies": f"{name}-replies",
        "topics_dead_letters": f"{name}-dlq",
        **settings,
    }
    environment = {f"SCORER_{key.upper()}": value for key, value in variables.items()}
    command = [sys.executable, "-m", "stream_scorer"]
    log = context.folder / name
    if exchanges is None:
        exchanges = wine_exchanges("/api/predict")
    with process(
        log.with_suffix(".worker.log"), [*command, "worker", "--conf", str(conf)], environment
    ) as worker:
        # Before the facade is started, so that it takes nothing from the time measured here.
        worker.wait_until(ready.exists)
        seconds = time.monotonic() - worker.began
        with process(
            log.with_suffix(".facade.log"), [*command, "facade", "--conf", str(conf)], environment
        ) as facade:
            facade.wait_until(lambda: answers(port, exchanges[0]))
            running = Running(port, exchanges, (worker.pid, facade.pid))
            yield Product(running, worker, facade, seconds)


def millisecond_conf(folder: Path) -> Path:
    """A conf file for the model that takes a millisecond; makes what it names."""
    model = folder / "millisecond-model"
    model.mkdir(exist_ok=True)
    description = {"model_uuid": "millisecond", "flavors": {"none": {}}}
    (model / "MLmodel").write_text(yaml.safe_dump(description), encoding="utf-8")
    conf = folder / "millisecond.yaml"
    settings = {"plugin": millisecond_plugin.__name__, "model_uri": str(model)}
    conf.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return conf


@contextmanager
def mlflow(context: Context) -> Iterator[Running]:
    """``mlflow models serve`` of the same ONNX model, in its own environment."""
    name = f"mlflow-{secrets.token_hex(4)}"
    (port,) = free_ports(1)
    model = _with_one_thread(ONNX_FILE.parent, context.folder / f"{name}-model")
    python = context.python("mlflow")
    command = [
        *(str(python), "-m", "mlflow", "models", "serve", "--env-manager", "local"),
        *("--model-uri", str(model), "--host", HOST, "--port", str(port)),
    ]
    # It starts its server by name.
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    exchanges = wine_exchanges("/invocations", wrap="dataframe_split")
    with process(context.folder / f"{name}.log", command, {"PATH": path}) as server:
        server.wait_until(lambda: answers(port, exchanges[0]))
        yield Running(port, exchanges, (server.pid,))


@contextmanager
def echo(context: Context) -> Iterator[Running]:
    """A server that answers at once: the most that the load itself can do."""
    (port,) = free_ports(1)
    right = b"[1,2,3]"
    body = orjson.dumps(wine_table(wines(1)[0][0]))
    exchanges = [Exchange("/", body, JSON, lambda given: given == right)]
    command = [sys.executable, "-m", "benchmarks.reply.echo", str(port), right.decode()]
    with process(context.folder / f"echo-{port}.log", command, {}) as server:
        server.wait_until(lambda: answers(port, exchanges[0]))
        yield Running(port, exchanges, (server.pid,))


def _with_one_thread(model: Path, copy: Path) -> Path:
    """A copy of the ONNX model that MLflow computes in one thread, as the others do."""
    shutil.copytree(model, copy)
    path = copy / "MLmodel"
    description: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    description["flavors"]["onnx"]["onnx_session_options"] = {
        "intra_op_num_threads": 1,
        "inter_op_num_threads": 1,
    }
    path.write_text(yaml.safe_dump(description), encoding="utf-8")
    return copy


def _create(bootstrap: str, topics: Mapping[str, int]) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    wanted = [NewTopic(name, partitions, 1) for name, partitions in topics.items()]
    for created in admin.create_topics(wanted).values():
        created.result(_KAFKA_TIMEOUT)
