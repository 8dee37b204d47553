"""Scoring: a payload goes to a worker, and its answer comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import ClassVar, Final

import falcon.asgi

from http_facade.body import BodyIncomplete, read_body
from http_facade.calls import Caller, Reply, UnknownStatus, header_text
from http_facade.operations import JSON, OCTET_STREAM, Operation, Parameter, Response, problem
from stream_scorer.config import Settings
from stream_scorer.protocol import ACCEPT, CONTENT_TYPE, Header, Status

_PASSED: Final = (CONTENT_TYPE, ACCEPT, "traceparent", "tracestate")
"""Request headers that reach Kafka, beside the request id; no other does."""

_STATUSES: Final[Mapping[str | None, Status]] = {status.value: status for status in Status}


class Predict:
    """``POST``: one payload in, the answer of a worker out."""

    operations: ClassVar = (
        Operation(
            method="post",
            summary="Score a payload",
            description="Endpoint for scoring.",
            payload="What the model is to score, as the plugin takes it; its type goes in "
            "Content-Type, the type wanted back in Accept.",
            parameters=(
                Parameter(
                    "X-Request-Id",
                    "header",
                    "An id of the caller's own, to find the request in logs by.",
                    {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
                ),
                Parameter("traceparent", "header", "W3C trace context, passed on to the worker."),
                Parameter("tracestate", "header", "W3C trace context, passed on to the worker."),
            ),
            responses={
                # The plugin decides what it answers in; the facade takes and gives any type.
                200: Response(
                    "Success",
                    {},
                    headers=("X-Request-Id", "X-Model", "Server-Timing"),
                    types=(JSON, "*/*"),
                ),
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
    resp.content_type = header_text(reply.content_type or OCTET_STREAM)
    if reply.model is not None:
        resp.set_header("X-Model", header_text(reply.model))
    if reply.server_timing is not None:
        resp.set_header("Server-Timing", header_text(reply.server_timing))
