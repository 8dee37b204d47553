"""How gunicorn runs the facade, from the same settings; its names are gunicorn's own."""

from __future__ import annotations

import ipaddress
import itertools
import logging
import math
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from http_facade.connections import bound
from stream_scorer import logs
from stream_scorer.config import ConfigError, Settings, load_settings

# By its name, as the library behind that module looks at the environment once, when it is imported.
_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"


_OTHER_FILES = 100
"""File descriptors that a process needs beside those of its callers."""

# A header of 8190 digits is a number too large, and no reason for a stack trace.
sys.set_int_max_str_digits(10_000)


def _read_settings() -> Settings:
    path = os.environ.get("SCORER_CONF")
    try:
        return load_settings(Path(path) if path else None, os.environ)
    except ConfigError as error:
        sys.stderr.write(f"stream-scorer: {error}\n")
        raise SystemExit(2) from None


def _bind(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def on_starting(_server: object) -> None:
    """Send gunicorn's own lines where all others go; without a handler they would be dropped."""
    logging.getLogger("gunicorn.error").propagate = True
    if not (_settings.facade.api_keys or _is_loopback(_settings.host)):
        logging.getLogger(__name__).warning(
            "whoever reaches %s can use this service: facade.api_keys is not set", bind
        )


def post_worker_init(worker: Any) -> None:
    """Bound what connections may take before the process takes any."""
    bound(worker.loop, worker_connections, _settings.facade.timeout)


def when_ready(server: Any) -> None:
    """Before the first fork: give several processes a folder for what they count."""
    os.environ.pop(_MULTIPROCESS, None)  # of others: in one process memory is enough
    if server.num_workers > 1:
        os.environ[_MULTIPROCESS] = tempfile.mkdtemp(prefix="stream-scorer-", dir=worker_tmp_dir)


def pre_fork(server: Any, worker: Any) -> None:
    """Give a process the lowest free slot, and so the files of the one whose place it takes.

    Counters then go on where that one stopped, and the files stay as few as the processes however
    often these are replaced.
    """
    taken = {other.slot for other in server.WORKERS.values()}
    worker.slot = next(slot for slot in itertools.count() if slot not in taken)


def post_fork(_server: object, worker: Any) -> None:
    """Have the process count in the files of its slot."""
    if _MULTIPROCESS in os.environ:
        from prometheus_client import values

        slotted = values.MultiProcessValue(lambda: worker.slot)  # type: ignore[no-untyped-call]
        values.ValueClass = slotted


def pre_request(_worker: object, _request: object) -> None:
    """In the place of gunicorn's own, which logs the path as it is, line breaks and all."""


def child_exit(_server: object, worker: Any) -> None:
    """Drop what the gauges of a process that has ended still show."""
    if _MULTIPROCESS in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.slot)  # type: ignore[no-untyped-call]


def on_exit(_server: object) -> None:
    """Remove the folder."""
    if _MULTIPROCESS in os.environ:
        shutil.rmtree(os.environ[_MULTIPROCESS], ignore_errors=True)


def _connections(wanted: int) -> int:
    """As many as wanted, or as there may be file descriptors for: a connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + _OTHER_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted + _OTHER_FILES:
        soft = min(wanted + _OTHER_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _OTHER_FILES))


_settings = _read_settings()
_timeout = math.ceil(_settings.facade.timeout)

bind = _bind(_settings.host, _settings.port)
workers = _settings.facade.processes
# Each that waits for an answer has one; the others are idle, send, read, or are refused.
worker_connections = _connections(_settings.facade.max_pending + 1000)
worker_class = "asgi"
asgi_lifespan = "on"

# A process whose event loop stands still is replaced. Longer than a request may take, so that the
# facade answers a body that does not arrive before the server cuts it off.
timeout = _timeout + 20
# Requests in flight end with their answers or their timeouts; then the clients are closed.
graceful_timeout = _timeout + 5
keepalive = 5

# Kafka clients do not survive a fork: each process makes its own.
preload_app = False
control_socket_disable = True
# Memory, so that no slow disk stops the heartbeat, or a count.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

logs.set_up(_settings.logging)
loglevel = _settings.logging.level.lower()
errorlog = None
accesslog = None
