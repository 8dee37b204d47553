"""Whether workers move and are ready, told by files and over HTTP beside the metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from stream_scorer.errors import OperationError

BEAT_EVERY: Final = 1.0
"""Seconds between signs of life."""

STUCK_AFTER: Final = 30.0
"""Seconds without a sign of life after which a worker is taken for stuck."""


class Pulse:
    """A worker's readiness and signs of life, also in a file for those who watch from outside.

    The file is there while the worker is ready, and as old as its last sign of life.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._ready = False
        self._beat = time.monotonic()

    def beat(self) -> None:
        """Give a sign of life; cheap enough for every turn of the loop."""
        now = time.monotonic()
        if now - self._beat < BEAT_EVERY:
            return
        self._beat = now
        if self._ready and self._file is not None:
            self._file.touch()

    def set_ready(self, ready: bool) -> None:
        """Tell whether partitions can be assigned to this worker and are scored."""
        self._ready = ready
        if self._file is None:
            return
        if ready:
            self._file.touch()
        else:
            self._file.unlink(missing_ok=True)

    def ready(self) -> bool:
        """Whether the model is loaded and the worker belongs to its group."""
        return self._ready

    def alive(self) -> bool:
        """Whether the loop moves."""
        return time.monotonic() - self._beat < STUCK_AFTER


class Pulses:
    """The pulses of other processes, by their files."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def ready(self) -> bool:
        """Whether all are ready."""
        return all(file.exists() for file in self._files)

    def alive(self) -> bool:
        """Whether each that was ready still moves."""
        return all(time.time() - age < STUCK_AFTER for age in self._ages())

    def _ages(self) -> Iterable[float]:
        for file in self._files:
            try:
                yield file.stat().st_mtime
            except FileNotFoundError:
                continue


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds: no line for each."""


def serve(
    host: str,
    port: int,
    pulse: Pulse | Pulses,
    registry: Callable[[], CollectorRegistry],
) -> WSGIServer:
    """Serve ``/metrics``, ``/livez`` and ``/readyz`` from threads of their own.

    Args:
        host: the address to listen on.
        port: the port; 0 takes a free one.
        pulse: what the probes answer from.
        registry: gives the metrics, anew for each request.

    Raises:
        OperationError: the address cannot be listened on.
    """

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            metrics: WSGIApplication = make_wsgi_app(registry())
            return metrics(environ, start)
        checks = {"/livez": pulse.alive, "/readyz": pulse.ready}
        if path not in checks:
            status, body = "404 Not Found", b"not found\n"
        elif checks[path]():
            status, body = "200 OK", b"ok\n"
        else:
            status, body = "503 Service Unavailable", b"not yet\n"
        start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    try:
        server = make_server(host, port, answer, _Server, _Quiet)
    except OSError as error:
        raise OperationError(f"metrics cannot be served on {host}:{port}: {error}") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
