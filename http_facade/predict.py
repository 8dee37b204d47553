"""Scoring: a payload goes to a worker, and its answer comes back."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar, Final

import falcon.asgi

from http_facade.answers import ANSWERED, PENDING, accept, answer
from http_facade.body import BodyIncomplete, read_body
from http_facade.budget import Budget, Share
from http_facade.calls import Caller, Place
from http_facade.operations import Operation, Parameter, Response, problem
from http_facade.prefer import applied, preferences
from stream_scorer.config import Settings
from stream_scorer.protocol import ACCEPT, CONTENT_TYPE, Header

_PASSED: Final = (CONTENT_TYPE, ACCEPT, "traceparent", "tracestate")
"""Request headers that reach Kafka, beside the request id; no other does."""


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
                    "Prefer",
                    "header",
                    "RFC 7240. `wait=S`: wait S seconds at most. `respond-async`: answer 202 once "
                    "the request is stored (after S seconds, with both); its answer is at the "
                    "Location.",
                ),
                Parameter(
                    "X-Request-Id",
                    "header",
                    "An id of the caller's own, to find the request in logs by: up to 64 "
                    "letters, digits, `.`, `_` and `-`. Any other is replaced.",
                ),
                Parameter("traceparent", "header", "W3C trace context, passed on to the worker."),
                Parameter("tracestate", "header", "W3C trace context, passed on to the worker."),
            ),
            responses={
                200: ANSWERED,
                202: Response(
                    "Stored, as the caller preferred not to wait.",
                    PENDING,
                    headers=(
                        "X-Request-Id",
                        "Server-Timing",
                        "Location",
                        "Retry-After",
                        "Preference-Applied",
                    ),
                ),
                400: problem(400, ["X-Model"]),
                408: problem(408),
                413: problem(413, ["X-Model"]),
                415: problem(415, ["X-Model"]),
                500: problem(500, ["X-Model"]),
                503: problem(503, ["Retry-After"]),
                504: problem(504, ["X-Model", "Location"]),
            },
        ),
    )

    def __init__(self, client: Caller, settings: Settings) -> None:
        self._client = client
        self._timeout = settings.facade.timeout
        self._async_timeout = settings.facade.async_timeout
        self._limit = settings.limits.payload_bytes
        # One payload is always taken, however large they may be.
        self._incoming = Budget(max(settings.facade.max_pending_bytes, self._limit))

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        preferred = preferences(req.get_header("Prefer"))
        longest = 0.0 if preferred.respond_async else self._timeout
        wait = min(preferred.wait or longest, self._timeout)
        if said := applied(preferred, wait):
            resp.set_header("Preference-Applied", said)
        if preferred.respond_async:
            deadline = time.monotonic() + self._timeout
            with self._incoming.share() as share:
                payload = await self._payload(req, self._timeout, share)
                left = deadline - time.monotonic()
                found = await self._client.submit(
                    payload,
                    _headers(req),
                    self._async_timeout,
                    min(wait, left),
                    left,
                    share.release,
                )
            if isinstance(found, Place):
                accept(resp, found)
            else:
                answer(resp, found)
            return
        # The body's own time counts, so that whoever sends it slowly holds nothing for longer.
        deadline = time.monotonic() + wait
        with self._incoming.share() as share:
            # Nothing here keeps the payload, which the client lets go of once it is sent.
            reply = await self._client.call(
                await self._payload(req, wait, share),
                _headers(req),
                deadline - time.monotonic(),
                share.release,
            )
        answer(resp, reply)

    async def _payload(self, req: falcon.asgi.Request, timeout: float, share: Share) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await read_body(req, self._limit, share)
        except TimeoutError:
            raise BodyIncomplete(
                f"the body did not arrive within {timeout:.3g} s; nothing was scored"
            ) from None


def _headers(req: falcon.asgi.Request) -> list[Header]:
    headers = [
        (name, value.encode()) for name in _PASSED if (value := req.get_header(name)) is not None
    ]
    headers.append(("x-request-id", req.context.request_id.encode()))
    return headers
