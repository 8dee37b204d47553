"""Every HTTP request and its response: counted, and told in one line of the log.

The line never holds payloads, header values but the request id, or the query.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Set
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import falcon.asgi

from http_facade.body import BodyEvents
from http_facade.calls import PREDICTIONS
from http_facade.metrics import METHODS, Metrics

_log = logging.getLogger(__name__)

_FREQUENT: Final = frozenset({"/livez", "/metrics", "/readyz"})
"""Routes that are asked every few seconds, and told at DEBUG."""

_CLIENT_GONE: Final = 499
"""What stands for a status where the client went away before the response."""

_LONGEST: Final = 256
"""Characters of a path, or of a word for a method, that are told."""

_SCOPE_KEY: Final = "http_facade.exchange"


class Exchange:
    """One request and its response, from beginning to end; also the ASGI ``send`` of it."""

    def __init__(
        self,
        metrics: Metrics,
        paths: Set[str],
        scope: dict[str, Any],
        events: BodyEvents,
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        self._metrics = metrics
        self._paths = paths
        self._scope = scope
        self._events = events
        self._send = send
        self._request: falcon.asgi.Request | None = None
        self._status: int | None = None
        self._sent = 0
        self._started = time.perf_counter()
        scope[_SCOPE_KEY] = self

    @staticmethod
    def identify(req: falcon.asgi.Request) -> None:
        """Tell a request's exchange of it, once it has its id."""
        req.scope[_SCOPE_KEY]._request = req

    async def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self._status = event["status"]
        else:
            self._sent += len(event.get("body", b""))
        await self._send(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        seconds = time.perf_counter() - self._started
        # In a cycle the request would stay until garbage is looked for.
        del self._scope[_SCOPE_KEY]
        status = self._status
        if status is None:
            # Without a response of ours the server sends a 500.
            status = _CLIENT_GONE if kind is asyncio.CancelledError else 500
        route = None if self._request is None else self._request.uri_template
        if route is None and self._scope["path"] in self._paths:
            route = self._scope["path"]  # it was refused before it was routed
        method = self._scope["method"]
        self._metrics.responded(route, method, status, seconds)
        level = logging.DEBUG if route in _FREQUENT else logging.INFO
        if _log.isEnabledFor(level):
            self._tell(level, route, method, status, seconds)

    def _tell(
        self, level: int, route: str | None, method: str, status: int, seconds: float
    ) -> None:
        path = route or self._scope["path"]
        if route is None and path.startswith(PREDICTIONS):
            # Refused before there was a route. Whoever reads the log is not to have the answer.
            path = f"{PREDICTIONS}{{id}}"
        elif route is None:
            # Whoever sends it may not write lines, or fields, of the log.
            path = quote(path[:_LONGEST])[:_LONGEST]
        if method not in METHODS:
            method = quote(method[:_LONGEST])[:_LONGEST]
        client = self._scope.get("client") or ()
        fields = {
            "method": method,
            "path": path,
            "status": status,
            "bytes_in": self._events.received,
            "bytes_out": self._sent,
            "duration_ms": round(seconds * 1000, 3),
            "request_id": None if self._request is None else self._request.context.request_id,
            "remote_addr": next(iter(client), None),
        }
        _log.log(
            level,
            "%s %s %d in=%d out=%d ms=%.3f id=%s from=%s",
            *fields.values(),
            extra=fields,
        )
