"""How gunicorn runs the facade, from the same settings; its names are gunicorn's own."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

from http_facade.connections import bound
from stream_scorer.config import ConfigError, Settings, load_settings


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


_settings = _read_settings()
_timeout = math.ceil(_settings.facade.timeout)

bind = _bind(_settings.host, _settings.port)
workers = _settings.facade.processes
# Each that waits for an answer has one; the others are idle, send, read, or are refused.
worker_connections = _settings.facade.max_pending + 1000
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
if os.access("/dev/shm", os.W_OK):  # noqa: S108 (memory, so that no slow disk stops the heartbeat)
    worker_tmp_dir = "/dev/shm"  # noqa: S108

logging.basicConfig(level=_settings.logging.level, format=_settings.logging.format, force=True)
loglevel = _settings.logging.level.lower()
errorlog = None
accesslog = None
