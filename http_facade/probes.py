"""The probes, for those who watch over processes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import falcon.asgi

from http_facade.calls import Caller, NotReady
from http_facade.operations import Operation, Response, problem


class Liveness:
    """``GET``: whether the process works at all; if not, only a new one helps."""

    operations: ClassVar = (
        Operation(
            method="get",
            summary="Is it alive?",
            description="Whether the process works. It does without a broker too.",
            needs_key=False,
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
        resp.media = {"status": "alive"}

    on_head = on_get


class Readiness:
    """``GET``: whether this process can take requests. Says nothing about workers."""

    operations: ClassVar = (
        Operation(
            method="get",
            summary="Is it ready?",
            description="Whether requests can be sent: replies are assigned and the broker is "
            "there. It does not need a worker.",
            needs_key=False,
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
        resp.media = {"status": "ready"}

    on_head = on_get
