"""The resources: scoring, the probes, the status, and the description of them all."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import falcon.asgi
import orjson

from http_facade.body import BodyIncomplete, read_body
from http_facade.calls import Caller, NotReady, Reply, UnknownStatus
from http_facade.swagger import JSON, Operation, Resource, Response, document, problem
from stream_scorer.config import Settings
from stream_scorer.protocol import ACCEPT, CONTENT_TYPE, PROBLEM_JSON, Header, Status

_PASSED: Final = (CONTENT_TYPE, ACCEPT, "traceparent", "tracestate")
"""Request headers that reach Kafka, beside the request id; no other does."""

_STATUSES: Final[Mapping[str | None, Status]] = {status.value: status for status in Status}
_OCTET_STREAM: Final = "application/octet-stream"
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


class Predict:
    """``POST``: one payload in, the answer of a worker out."""

    operations: ClassVar = (
        Operation(
            method="post",
            description="Endpoint for scoring.",
            # The plugin behind the topic decides; the facade takes and gives any type.
            consumes=(JSON, _OCTET_STREAM, "*/*"),
            produces=(JSON, PROBLEM_JSON, "*/*"),
            parameters=(
                {
                    "name": "payload",
                    "in": "body",
                    "description": "What the model is to score, as the plugin takes it; its type "
                    "goes in Content-Type, the type wanted back in Accept.",
                    "required": True,
                    "schema": {"type": "string", "format": "binary"},
                },
                {
                    "name": "X-Request-Id",
                    "in": "header",
                    "description": "An id of the caller's own, to find the request in logs by.",
                    "type": "string",
                    "pattern": "^[A-Za-z0-9._-]{1,64}$",
                    "required": False,
                },
                {
                    "name": "traceparent",
                    "in": "header",
                    "description": "W3C trace context, passed on to the worker.",
                    "type": "string",
                    "required": False,
                },
                {
                    "name": "tracestate",
                    "in": "header",
                    "description": "W3C trace context, passed on to the worker.",
                    "type": "string",
                    "required": False,
                },
            ),
            responses={
                200: Response("Success", {}, headers=("X-Request-Id", "X-Model", "Server-Timing")),
                400: problem(400, ["X-Model"]),
                408: problem(408),
                413: problem(413, ["X-Model"]),
                415: problem(415, ["X-Model"]),
                500: problem(500, ["X-Model"]),
                503: problem(503, ["Retry-After"]),
                504: problem(504, ["X-Model"]),
            },
        ),
    )

    def __init__(self, client: Caller, settings: Settings) -> None:
        self._client = client
        self._timeout = settings.facade.timeout
        self._limit = settings.limits.payload_bytes

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        # The body's own time counts, so that whoever sends it slowly holds nothing for longer.
        deadline = time.monotonic() + self._timeout
        # Nothing here keeps the payload, which the client lets go of once it is sent.
        reply = await self._client.call(
            await self._payload(req), _headers(req), deadline - time.monotonic()
        )
        _answer(resp, reply)

    async def _payload(self, req: falcon.asgi.Request) -> bytes:
        try:
            async with asyncio.timeout(self._timeout):
                return await read_body(req, self._limit)
        except TimeoutError:
            raise BodyIncomplete(
                f"the body did not arrive within {self._timeout:.3g} s; nothing was scored"
            ) from None


def _headers(req: falcon.asgi.Request) -> list[Header]:
    headers = [
        (name, value.encode()) for name in _PASSED if (value := req.get_header(name)) is not None
    ]
    headers.append(("x-request-id", req.context.request_id.encode()))
    return headers


def _answer(resp: falcon.asgi.Response, reply: Reply) -> None:
    status = _STATUSES.get(reply.status)
    if status is None:
        raise UnknownStatus(f"the worker's answer has the status {reply.status!r}")
    resp.status = status.http
    resp.data = reply.body
    resp.content_type = _header_text(reply.content_type or _OCTET_STREAM)
    if reply.model is not None:
        resp.set_header("X-Model", _header_text(reply.model))
    if reply.server_timing is not None:
        resp.set_header("Server-Timing", _header_text(reply.server_timing))


def _header_text(text: str) -> str:
    # Whoever may write replies may not write header lines.
    return _UNPRINTABLE.sub("?", text)


class Liveness:
    """``GET``: whether the process works at all; if not, only a new one helps."""

    operations: ClassVar = (
        Operation(
            method="get",
            description="Whether the process works. It does without a broker too.",
            responses={
                200: Response("It does.", {"type": "object"}),
                500: problem(500),
                503: problem(503, ["Retry-After"]),
            },
        ),
    )

    def __init__(self, client: Caller) -> None:
        self._client = client

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        if not self._client.alive:
            raise NotReady("a thread of the Kafka clients has ended")
        _json(resp, {"status": "alive"})


class Readiness:
    """``GET``: whether this process can take requests. Says nothing about workers."""

    operations: ClassVar = (
        Operation(
            method="get",
            description="Whether requests can be sent: replies are assigned and the broker is "
            "there. It does not need a worker.",
            responses={
                200: Response("They can.", {"type": "object"}),
                500: problem(500),
                503: problem(503, ["Retry-After"]),
            },
        ),
    )

    def __init__(self, client: Caller, ready_file: Path | None) -> None:
        self._client = client
        self._ready_file = ready_file

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        if not self._client.ready:
            raise NotReady("not connected to Kafka")
        if self._ready_file is not None and not self._ready_file.exists():
            raise NotReady("what stands behind this service is not ready")
        _json(resp, {"status": "ready"})


class ServerStatus:
    """``GET``: the process, its Kafka clients, and the model that answered last."""

    operations: ClassVar = (
        Operation(
            method="get",
            description="The state of the process that answers, of its Kafka clients, and the "
            "model that answered last.",
            responses={
                200: Response(
                    "Success",
                    {
                        "type": "object",
                        "required": ["system", "kafka", "model"],
                        "properties": {
                            "system": {
                                "type": "object",
                                "properties": {
                                    "pid": {"type": "integer"},
                                    "current_dir": {"type": "string"},
                                    "python.version": {"type": "string"},
                                    "request": {
                                        "type": "object",
                                        "properties": {
                                            "url_root": {"type": "string"},
                                            "remote_addr": {"type": "string"},
                                        },
                                    },
                                    "current_logging_level": {"type": "string"},
                                },
                            },
                            "kafka": {"type": "object"},
                            "model": {
                                "type": "object",
                                "properties": {"name": {"type": "string"}},
                            },
                        },
                    },
                ),
                500: problem(500),
            },
        ),
    )

    def __init__(self, client: Caller) -> None:
        self._client = client

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        _json(
            resp,
            {
                "system": {
                    "pid": os.getpid(),
                    "current_dir": str(Path.cwd()),
                    "python.version": sys.version,
                    "request": {
                        "url_root": f"{req.prefix}/",
                        # The connection's other end, whatever the headers say of it.
                        "remote_addr": req.remote_addr,
                    },
                    "current_logging_level": logging.getLevelName(
                        logging.getLogger().getEffectiveLevel()
                    ),
                },
                "kafka": self._client.snapshot(),
                "model": {"name": self._client.model or "not known yet"},
            },
        )


class Swagger:
    """``GET``: the Swagger document of the routes, this one included."""

    operations: ClassVar = (
        Operation(
            method="get",
            description="This document.",
            responses={200: Response("Success", {"type": "object"}), 500: problem(500)},
        ),
    )

    def __init__(self, routes: Mapping[str, Resource]) -> None:
        self._routes = routes

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        _json(resp, self._document)

    @cached_property
    def _document(self) -> dict[str, Any]:
        return document(self._routes)


def routes(client: Caller, settings: Settings) -> Mapping[str, Resource]:
    """The one table of routes: path and resource."""
    table: dict[str, Resource] = {
        "/api/predict": Predict(client, settings),
        "/api/status": ServerStatus(client),
        "/livez": Liveness(client),
        "/readyz": Readiness(client, settings.facade.ready_file),
    }
    table["/api/swagger"] = Swagger(table)
    return table


def _json(resp: falcon.asgi.Response, value: Mapping[str, Any]) -> None:
    resp.content_type = JSON
    resp.data = orjson.dumps(value)
