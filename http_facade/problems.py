"""Problems over HTTP: one table from exception to status, and RFC 9457 bodies as on the topics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import falcon
import falcon.asgi
import orjson

from http_facade.body import BodyIncomplete, EncodingNotSupported, PayloadTooLarge
from http_facade.calls import (
    AnswerDropped,
    DeliveryFailed,
    NoSuchPrediction,
    NotReady,
    Overloaded,
    PredictionGone,
    ReplyLost,
    ReplyTimeout,
    RequestTooLarge,
    Unauthorized,
    UnknownStatus,
)
from stream_scorer.protocol import PROBLEM_JSON, PROBLEM_TYPE_PREFIX, Status

_log = logging.getLogger(__name__)


class Problem(NamedTuple):
    """One kind of problem: the end of its ``type``, its HTTP status and its title."""

    name: str
    http: int
    title: str

    @classmethod
    def of(cls, status: Status) -> Problem:
        """The problem that a status of the wire contract stands for."""
        return cls(status.value, status.http, status.title)


INTERNAL_ERROR: Final = Problem("internal-error", 500, "Internal error")

PROBLEMS: Final[Mapping[type[Exception], Problem]] = {
    PayloadTooLarge: Problem.of(Status.PAYLOAD_TOO_LARGE),
    RequestTooLarge: Problem.of(Status.PAYLOAD_TOO_LARGE),
    EncodingNotSupported: Problem("unsupported-content-encoding", 415, "Unsupported encoding"),
    BodyIncomplete: Problem("request-timeout", 408, "Body not received"),
    Unauthorized: Problem("unauthorized", 401, "Unauthorized"),
    NotReady: Problem("not-ready", 503, "Not ready"),
    Overloaded: Problem("overloaded", 503, "Overloaded"),
    AnswerDropped: Problem("answer-dropped", 503, "Answer dropped"),
    DeliveryFailed: Problem("delivery-failed", 503, "Request not delivered"),
    ReplyLost: Problem("reply-lost", 503, "Reply lost"),
    ReplyTimeout: Problem("timeout", 504, "No answer in time"),
    NoSuchPrediction: Problem("not-found", 404, "Not Found"),
    PredictionGone: Problem("gone", 410, "No answer any more"),
    UnknownStatus: Problem("unknown-status", 500, "Answer not understood"),
    Exception: INTERNAL_ERROR,
}
"""What each exception of ours becomes; its text is the ``detail``, but for ``Exception``."""

_HEADERS: Final[Mapping[type[Exception], Mapping[str, str]]] = {
    EncodingNotSupported: {"Accept-Encoding": "identity"},
    Unauthorized: {"WWW-Authenticate": "Bearer"},
    NotReady: {"Retry-After": "1"},
    Overloaded: {"Retry-After": "1"},
    AnswerDropped: {"Retry-After": "1"},
    DeliveryFailed: {"Retry-After": "1"},
    ReplyLost: {"Retry-After": "1"},
}


def problems_of(http: int) -> Iterable[Problem]:
    """Every problem that a scoring request may end in with this HTTP status."""
    statuses = (Problem.of(status) for status in Status if status is not Status.OK)
    return dict.fromkeys(
        problem for problem in (*statuses, *PROBLEMS.values()) if problem.http == http
    )


def body(problem: Problem, detail: str, correlation_id: str | None = None) -> bytes:
    """The RFC 9457 body of a problem, with the members that it has on the topics."""
    members: dict[str, str | int] = {
        "type": PROBLEM_TYPE_PREFIX + problem.name,
        "title": problem.title,
        "status": problem.http,
        "detail": detail,
    }
    if correlation_id is not None:
        members["correlation_id"] = correlation_id
    return orjson.dumps(members)


def install(app: falcon.asgi.App[Any, Any]) -> None:
    """Answer every exception with its problem."""
    for kind in PROBLEMS:
        app.add_error_handler(kind, _handle_ours if kind is not Exception else _handle_unexpected)
    app.add_error_handler(falcon.HTTPError, _handle_http)


def respond(
    resp: falcon.asgi.Response, problem: Problem, detail: str, correlation_id: str | None = None
) -> None:
    """Make a response of a problem."""
    resp.status = problem.http
    resp.content_type = PROBLEM_JSON
    resp.text = None
    resp.data = body(problem, detail, correlation_id)


async def _handle_ours(
    _req: falcon.asgi.Request,
    resp: falcon.asgi.Response,
    error: Exception,
    _params: dict[str, Any],
) -> None:
    kind = type(error)
    if isinstance(error, ReplyTimeout):
        respond(resp, PROBLEMS[kind], str(error), error.place.correlation_id)
        resp.set_header("Location", error.place.uri)
        return
    respond(resp, PROBLEMS[kind], str(error))
    resp.set_headers(_HEADERS.get(kind, {}))


async def _handle_http(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response,
    error: falcon.HTTPError,
    _params: dict[str, Any],
) -> None:
    """Errors of the framework: no such path, a method that a path does not have, a bad header."""
    status = HTTPStatus(error.status_code)
    problem = Problem(status.phrase.lower().replace(" ", "-"), status, status.phrase)
    respond(resp, problem, error.description or f"{req.method} {req.path}: {status.phrase}")
    resp.set_headers(error.headers or {})


async def _handle_unexpected(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response,
    error: Exception,
    _params: dict[str, Any],
) -> None:
    extra = {"request_id": req.context.request_id}
    _log.error(
        "%s %r failed", req.method, req.uri_template or req.path, exc_info=error, extra=extra
    )
    respond(resp, INTERNAL_ERROR, "the request failed inside the service")
