"""Responses made of what a call ended in: an answer, or the place where it will be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import falcon.asgi

from http_facade.calls import Place, Reply, UnknownStatus, header_text
from http_facade.operations import JSON, OCTET_STREAM, Response
from stream_scorer.protocol import Status

_STATUSES: Final[Mapping[str | None, Status]] = {status.value: status for status in Status}

PENDING: Final[Mapping[str, object]] = {
    "type": "object",
    "required": ["status", "location"],
    "properties": {
        "status": {"type": "string", "enum": ["pending"]},
        "location": {"type": "string"},
    },
}
"""The schema of the body of a 202."""

_RETRY_AFTER: Final = "1"
"""Seconds after which to ask for a prediction."""

ANSWERED: Final = Response(
    "Success",
    {},
    headers=("X-Request-Id", "X-Model", "Server-Timing"),
    # The plugin decides what it answers in; the facade takes and gives any type.
    types=(JSON, "*/*"),
)
"""How an operation ends that gives a worker's answer."""


def answer(resp: falcon.asgi.Response, reply: Reply) -> None:
    """Answer with what a worker said.

    Raises:
        UnknownStatus: its status is not in the wire contract.
    """
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


def accept(resp: falcon.asgi.Response, place: Place) -> None:
    """Answer 202: the request is stored, and its answer is to be asked for at ``Location``."""
    resp.status = falcon.HTTP_202
    resp.media = {"status": "pending", "location": place.uri}
    resp.set_headers({"Location": place.uri, "Retry-After": _RETRY_AFTER})
