"""Answers asked for later, of whichever process: they are looked up on the replies topic."""

from __future__ import annotations

import re
from typing import ClassVar, Final

import falcon.asgi

from http_facade.answers import ANSWERED, PENDING, accept, answer
from http_facade.calls import Caller, NoSuchPrediction, Place
from http_facade.operations import Operation, Parameter, Response, problem

_ID: Final = re.compile(r"[0-9a-f]{16}\.[0-9a-f]{32}")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_NATURAL: Final = {"type": "integer", "format": "int64", "minimum": 0}
_MOST_PARTITIONS: Final = 2**31


class Predictions:
    """``GET``: the answer to a request that was sent before, if it is there."""

    operations: ClassVar = (
        Operation(
            method="get",
            summary="Ask for an answer later",
            description="The answer to a request that nobody waited for, at the location that "
            "came with the 202 or the 504. A 202 names the location to ask next.",
            parameters=(
                Parameter(
                    "id",
                    "path",
                    "The request's correlation id.",
                    {"type": "string", "pattern": f"^{_ID.pattern}$"},
                    required=True,
                ),
                *(
                    Parameter(name, "query", description, _NATURAL, required=True)
                    for name, description in (
                        ("partition", "The partition of the replies topic."),
                        ("offset", "From where on the answer is looked for."),
                        ("until", "The request's deadline, in ms since the epoch."),
                    )
                ),
            ),
            responses={
                200: ANSWERED,
                202: Response(
                    "Not yet.",
                    PENDING,
                    headers=("X-Request-Id", "Server-Timing", "Location", "Retry-After"),
                ),
                400: problem(400, ["X-Model"]),
                404: problem(404),
                410: problem(410),
                413: problem(413, ["X-Model"]),
                415: problem(415, ["X-Model"]),
                500: problem(500, ["X-Model"]),
                503: problem(503, ["Retry-After"]),
                504: problem(504, ["X-Model"]),
            },
        ),
    )

    def __init__(self, client: Caller) -> None:
        self._client = client

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, id: str) -> None:
        found = await self._client.find(_place(req, id))
        if isinstance(found, Place):
            accept(resp, found)
        else:
            answer(resp, found)

    on_head = on_get


def _place(req: falcon.asgi.Request, correlation_id: str) -> Place:
    numbers = [req.get_param(name) or "" for name in ("partition", "offset", "until")]
    if not _ID.fullmatch(correlation_id) or not all(map(_NUMBER.fullmatch, numbers)):
        raise NoSuchPrediction("no such prediction; ask with the whole of the location given")
    partition, offset, until = map(int, numbers)
    if partition >= _MOST_PARTITIONS:
        raise NoSuchPrediction("no such prediction")
    return Place(correlation_id, partition, offset, until)
