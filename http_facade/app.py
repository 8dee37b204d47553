"""The application: its routes, what every response carries, and when the client starts."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import falcon.asgi
import orjson
from falcon.media import JSONHandler

from http_facade import budget, problems
from http_facade.access import Exchange
from http_facade.body import BodyEvents
from http_facade.budget import Outgoing
from http_facade.calls import Caller
from http_facade.client import RequestReplyClient
from http_facade.keys import Keys
from http_facade.metrics import Metrics
from http_facade.resources import routes
from stream_scorer.config import Settings, load_settings

CONF_VARIABLE: Final = "SCORER_CONF"
"""The environment variable that names the conf file."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Facade(falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]):
    """A Falcon app that looks at a request before its body is there, and takes the body's rest."""

    def __init__(self, metrics: Metrics, paths: Iterable[str], **options: Any) -> None:
        super().__init__(**options)
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(  # type: ignore[override]  # as Falcon's own is not that of its WSGI parent
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Mapping[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] == "websocket":
            # There is none anywhere, with a key or without.
            await receive()
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if scope["method"] == "WEBSOCKET":
            # Falcon's own name for something else: refused before any middleware has seen it.
            scope["method"] = "UNKNOWN"
        events = BodyEvents(receive)
        with Exchange(self._metrics, self._paths, scope, events, send) as exchange:
            try:
                await super().__call__(scope, events, exchange)
            finally:
                budget.sent(scope)
        await events.drain()


class _Lifespan:
    """Starts the client in the process that serves, and closes it when requests have ended."""

    def __init__(self, client: Caller) -> None:
        self._client = client

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        self._client.start()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await self._client.close()


class _Envelope:
    """What every response carries, whatever it is."""

    async def process_request(self, req: falcon.asgi.Request, _resp: falcon.asgi.Response) -> None:
        req.context.started = time.perf_counter()
        given = req.get_header("X-Request-Id")
        well_formed = given is not None and _REQUEST_ID.fullmatch(given)
        req.context.request_id = given if well_formed else secrets.token_hex(16)
        Exchange.identify(req)

    async def process_response(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        _resource: object,
        _succeeded: bool,
    ) -> None:
        total = f"total;dur={(time.perf_counter() - req.context.started) * 1000:.3f}"
        stages = resp.get_header("Server-Timing")
        resp.set_headers(
            {
                "Server-Timing": f"{stages}, {total}" if stages else total,
                "X-Request-Id": req.context.request_id,
                "Cache-Control": resp.get_header("Cache-Control") or "no-store",
                "X-Content-Type-Options": "nosniff",
                # Without one the server would name itself and its software.
                "Server": "facade",
            }
        )


def create_app(client: Caller, settings: Settings) -> Facade:
    """The application around a client, which it starts and closes with the server process.

    Raises:
        SetupError: a file that the documentation is made of cannot be used.
    """
    most = max(settings.facade.max_pending_bytes, settings.limits.result_bytes)
    keys = [key.get_secret_value() for key in settings.facade.api_keys]
    # Responses go through these from the last to the first.
    middleware = [_Lifespan(client), _Envelope(), Keys(keys), Outgoing(most)]
    table = routes(client, settings)
    app = Facade(client.metrics, table, middleware=middleware)
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = JSONHandler(dumps=orjson.dumps)
    for path, resource in table.items():
        app.add_route(path, resource)
    problems.install(app)
    return app


def get_app() -> Facade:
    """The application as the server makes it: settings from ``SCORER_CONF`` and the environment.

    Raises:
        SetupError: the settings are wrong, or name a file that cannot be used.
    """
    conf = os.environ.get(CONF_VARIABLE)
    settings = load_settings(Path(conf) if conf else None, os.environ)
    return create_app(RequestReplyClient(settings), settings)
