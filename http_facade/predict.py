"""Scoring: a payload goes to a worker, and its answer comes back."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import ClassVar, Final

import falcon.asgi

from http_facade.body import BodyIncomplete, read_body
from http_facade.budget import Budget, Share
from http_facade.calls import Caller, Reply, UnknownStatus
from http_facade.swagger import JSON, Operation, Response, problem
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
                401: problem(401, ["WWW-Authenticate"]),
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
        # One payload is always taken, however large they may be.
        self._incoming = Budget(max(settings.facade.max_pending_bytes, self._limit))

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        # The body's own time counts, so that whoever sends it slowly holds nothing for longer.
        deadline = time.monotonic() + self._timeout
        with self._incoming.share() as share:
            # Nothing here keeps the payload, which the client lets go of once it is sent.
            reply = await self._client.call(
                await self._payload(req, share),
                _headers(req),
                deadline - time.monotonic(),
                share.release,
            )
        _answer(resp, reply)

    async def _payload(self, req: falcon.asgi.Request, share: Share) -> bytes:
        try:
            async with asyncio.timeout(self._timeout):
                return await read_body(req, self._limit, share)
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
