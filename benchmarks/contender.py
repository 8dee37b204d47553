"""Those who are compared: how each is started, and what it is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import orjson

from benchmarks.case import ROOT
from benchmarks.environments import python_of
from benchmarks.job import Job
from benchmarks.workload import Workload, bare_wine, tensors
from tests.kafka_server import free_ports

_MLSERVER_MODEL: Final = "wine"


@dataclass(frozen=True, slots=True)
class Command:
    """A program to start.

    Attributes:
        arguments: the program and its arguments.
        environment: added to the usual one.
        ready_url: answers 200 once the program can take requests; ``None`` where nobody asks.
    """

    arguments: list[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_url: str | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do a case's work.

    Attributes:
        name: as in the table.
        command: how to start it, by what it is to do and a folder for what it needs.
        workload: what it is asked, where that is not what the others are asked.
        live: whether it is asked only once it is ready: it takes nothing from before, or all its
            processes have to be there.
        members: of a contender in many processes, how many join its group; its requests are there
            before it, and can be read once all of them have their partitions. 0: not so.
        share: which part of the requests it gets; less for a slow one.
    """

    name: str
    command: Callable[[Job, Path], Command]
    workload: Callable[[], Workload] | None = None
    live: bool = False
    members: int = 0
    share: float = 1.0


def floor(model: str, *, batch: int = 512, exactly_once: bool = False) -> Contender:
    """The bare loop."""

    def command(job: Job, _: Path) -> Command:
        told = replace(job, model=model, batch=batch, exactly_once=exactly_once)
        return Command([sys.executable, "-m", "benchmarks.floor", told.text()])

    return Contender("floor exactly-once" if exactly_once else "floor", command)


def product(
    conf: str,
    *,
    name: str = "",
    exactly_once: bool = False,
    batch: int | None = None,
    processes: int | None = None,
    plugin: bool = True,
) -> Contender:
    """The product as its users run it.

    Args:
        conf: the conf file, from the project's folder.
        name: what it is called, where that is not the usual.
        exactly_once: its mode of delivery.
        batch: its ``worker.max_batch_size``, where that is not the default.
        processes: its ``worker.processes``; it is then asked once all of them are ready.
        plugin: whether with the conf file's plugin.
    """

    def command(job: Job, _: Path) -> Command:
        environment = {
            "SCORER_KAFKA_BOOTSTRAP_SERVERS": job.bootstrap,
            "SCORER_TOPICS_REQUESTS": job.requests,
            "SCORER_TOPICS_RESULTS": job.results,
            "SCORER_WORKER_GROUP": job.group,
            "SCORER_WORKER_DELIVERY": "exactly_once" if exactly_once else "at_least_once",
        }
        ready_url = None
        if not plugin:
            environment["SCORER_PLUGIN"] = "null"
        if batch is not None:
            environment["SCORER_WORKER_MAX_BATCH_SIZE"] = str(batch)
        if processes is not None:
            (port,) = free_ports(1)
            ready_url = f"http://localhost:{port}/readyz"
            environment["SCORER_WORKER_METRICS_PORT"] = str(port)
            environment["SCORER_WORKER_PROCESSES"] = str(processes)
        program: list[str | Path] = [sys.executable, "-m", "stream_scorer", "worker"]
        return Command([*program, "--conf", ROOT / conf], environment, ready_url)

    usual = "product exactly-once" if exactly_once else "product"
    return Contender(name or usual, command, live=processes is not None)


def without_plugin(conf: str, model: str) -> Contender:
    """The product with the model of a conf file, and MLflow's payloads instead of its plugin."""
    made = product(conf, name="product, no plugin", plugin=False)
    return replace(made, workload=partial(bare_wine, model))


def quix(model: str, *, exactly_once: bool = False) -> Contender:
    """Quix Streams."""

    def command(job: Job, _: Path) -> Command:
        told = replace(job, model=model, exactly_once=exactly_once)
        module = "benchmarks.contenders.quix_app"
        return Command([python_of("quix"), "-m", module, told.text()])

    return Contender("Quix exactly-once" if exactly_once else "Quix", command)


def faststream(model: str) -> Contender:
    """FastStream, with a subscriber that takes batches."""

    def command(job: Job, _: Path) -> Command:
        told = replace(job, model=model)
        module = "benchmarks.contenders.faststream_app"
        return Command([python_of("faststream"), "-m", module, told.text()])

    return Contender("FastStream", command, share=0.25)


def mlserver() -> Contender:
    """MLServer's Kafka server with the wine tree."""

    def command(job: Job, folder: Path) -> Command:
        model = {
            "name": _MLSERVER_MODEL,
            "implementation": "benchmarks.contenders.mlserver_model.WineModel",
        }
        (folder / "model-settings.json").write_bytes(orjson.dumps(model))
        http, grpc, metrics = free_ports(3)
        settings = {
            "debug": False,
            # The model in the server's own process, which is faster for so small a one.
            "parallel_workers": 0,
            "host": "127.0.0.1",
            "http_port": http,
            "grpc_port": grpc,
            "metrics_port": metrics,
            "metrics_dir": str(folder),
            "kafka_enabled": True,
            "kafka_servers": job.bootstrap,
            "kafka_topic_input": job.requests,
            "kafka_topic_output": job.results,
        }
        (folder / "settings.json").write_bytes(orjson.dumps(settings))
        start = "from mlserver.cli import main; main()"
        return Command(
            [python_of("mlserver"), "-c", start, "start", folder],
            ready_url=f"http://127.0.0.1:{http}/v2/health/ready",
        )

    return Contender("MLServer", command, lambda: tensors(_MLSERVER_MODEL), live=True, share=0.02)
