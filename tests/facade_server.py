"""The facade as it runs for tests: gunicorn in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from tests.echo_worker import EchoWorker

PATIENCE = 30.0
STOP_WITHIN = 20.0

TOPICS = (
    "SCORER_TOPICS_REQUESTS",
    "SCORER_TOPICS_RESULTS",
    "SCORER_TOPICS_REPLIES",
    "SCORER_TOPICS_DEAD_LETTERS",
)
"""The variables that name the topics."""


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The last part of the problem's type."""
        assert self.headers["content-type"] == "application/problem+json"
        found = json.loads(self.body)
        assert found["status"] == self.status
        return str(found["type"]).rpartition(":")[2]


class Server:
    """A running facade."""

    def __init__(self, log: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.log = log
        self.process = process
        self.port = port

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(
                method,
                path,
                body,
                headers or {},
                encode_chunked=not (body is None or isinstance(body, bytes)),
            )
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def predict(self, body: bytes | Iterable[bytes], **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", "/api/predict", body, named)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("GET", "/api/status").body)
        return found

    def is_ready(self) -> bool:
        return self.ask("GET", "/readyz").status == 200

    def stop(self) -> None:
        """Stop it as a service manager would, and fail where it does not obey."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server does not stop:\n{self.log.read_text()}")
        assert code == 0, self.log.read_text()


class Start(Protocol):
    """Starts a facade, ready unless told otherwise, that stops after the test."""

    def __call__(self, *, ready: bool = True, **environ: str) -> Server: ...


Work = Callable[..., EchoWorker]
"""Starts an echo worker that stops after the test."""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        time.sleep(0.02)


@contextmanager
def running(log: Path, environ: dict[str, str]) -> Iterator[Server]:
    inherited = {name: value for name, value in os.environ.items() if "SCORER" not in name}
    settings = {
        "SCORER_HOST": "127.0.0.1",
        "SCORER_PORT": "0",
        "SCORER_TOPICS_CREATE": "false",
        "SCORER_KAFKA_CONSUMER_FETCH_WAIT_MAX_MS": "5",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "-c",
                "python:http_facade.gunicorn_conf",
                "http_facade.app:get_app()",
            ],
            env={**inherited, **settings, "PYTHONPATH": str(Path.cwd()), **environ},
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: "Listening at" in log.read_text() or process.poll() is not None)
        listening = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log.read_text())
        assert listening is not None, log.read_text()
        server = Server(log, process, int(listening[1]))
        until(lambda: answers(server))
        yield server
        if process.poll() is None:
            server.stop()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        sys.stdout.write(log.read_text())


def answers(server: Server) -> bool:
    try:
        return server.ask("GET", "/livez").status == 200
    except OSError:
        return False
