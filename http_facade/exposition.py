"""The metrics, for Prometheus."""

from __future__ import annotations

from typing import ClassVar

import falcon.asgi
from prometheus_client import CONTENT_TYPE_LATEST

from http_facade.metrics import Metrics
from http_facade.operations import TEXT, Operation, Response, problem


class Exposition:
    """``GET``: the metrics of all processes of this facade, whichever of them answers."""

    operations: ClassVar = (
        Operation(
            method="get",
            summary="Metrics",
            description="Metrics in the text format of Prometheus, of all processes together.",
            responses={
                200: Response("The metrics.", TEXT, types=("text/plain",)),
                500: problem(500),
                # Where too much waits already for callers that read slowly.
                503: problem(503, ["Retry-After"]),
            },
        ),
    )

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.content_type = CONTENT_TYPE_LATEST
        resp.data = self._metrics.exposition()

    on_head = on_get
