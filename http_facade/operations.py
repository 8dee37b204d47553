"""What the routes do, in words for a machine: the table that the documents are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal, Protocol

from http_facade.problems import problems_of
from stream_scorer.protocol import PROBLEM_JSON, PROBLEM_TYPE_PREFIX

Schema = Mapping[str, Any]

TITLE: Final = "stream-scorer"
DESCRIPTION: Final = "Scores payloads with an MLflow model behind Kafka topics."

JSON: Final = "application/json"
OCTET_STREAM: Final = "application/octet-stream"
TEXT: Final[Schema] = {"type": "string"}

PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri", "example": PROBLEM_TYPE_PREFIX + "timeout"},
        "title": TEXT,
        "status": {"type": "integer", "description": "The HTTP status.", "example": 504},
        "detail": TEXT,
        "request": {
            "type": "string",
            "description": "The request's place in Kafka: topic/partition/offset.",
        },
        "correlation_id": {
            "type": "string",
            "description": "What a late answer or a log line can be found by.",
        },
    },
}
"""The one schema that has a name in the documents, ``Problem``."""

HEADERS: Final[Mapping[str, str]] = {
    "X-Request-Id": "The request's id: the caller's where it is well formed, else a new one.",
    "X-Model": "The model that answered: `URI; version=N`.",
    "Server-Timing": "Milliseconds in each stage, as `stage;dur=…`.",
    "Retry-After": "Seconds after which to try again.",
    "Location": "Where to ask for the answer later.",
    "Preference-Applied": "The preferences that were understood.",
    "WWW-Authenticate": "How to say who you are.",
}
"""Response headers, and words for them."""

KEY: Final = "key"
"""What the documents call the bearer key."""

WITHOUT_KEY: Final = 401


@dataclass(frozen=True)
class Parameter:
    """A value that a caller gives beside the body."""

    name: str
    place: Literal["path", "query", "header"]
    description: str
    schema: Schema = field(default_factory=lambda: TEXT)
    required: bool = False


@dataclass(frozen=True)
class Response:
    """One way an operation may end.

    ``schema`` is that of its body in each of ``types``; no types, no body. ``headers`` it always
    has, ``sometimes`` those in certain cases; both are names that ``HEADERS`` has words for.
    """

    description: str
    schema: Schema
    headers: tuple[str, ...] = ("X-Request-Id", "Server-Timing")
    sometimes: Sequence[str] = ()
    types: Sequence[str] = (JSON,)


_FROM_THE_SERVER: Final[Mapping[int, Response]] = {
    http: Response(description, TEXT, headers=(), types=("text/plain",))
    for http, description in (
        (414, "The path and query are too long."),
        (431, "The headers are too long, or too many."),
    )
}
"""What the server in front of the application says by itself to what parameters may hold."""


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    ``payload`` describes its body, where it takes one; the plugin decides of which types that may
    be. ``needs_key`` counts where keys are configured.
    """

    method: str
    summary: str
    description: str
    responses: Mapping[int, Response]
    parameters: Sequence[Parameter] = ()
    payload: str | None = None
    needs_key: bool = True

    def endings(self, keys: bool) -> Mapping[int, Response]:
        """The responses, with those that are not its own: of the server, and of the keys."""
        found = dict(self.responses)
        if self.parameters:
            found |= _FROM_THE_SERVER
        if keys and self.needs_key:
            found[WITHOUT_KEY] = problem(WITHOUT_KEY, always=["WWW-Authenticate"])
        return dict(sorted(found.items()))

    def name(self, path: str) -> str:
        """Its ``operationId`` at this path."""
        words = path.removeprefix("/api").replace("{", "").replace("}", "")
        return f"{self.method}_{words.strip('/').replace('/', '_')}"


class Resource(Protocol):
    """What stands behind a path."""

    @property
    def operations(self) -> Sequence[Operation]:
        """Its methods, one for each ``on_…`` it has; none where the documents leave it out."""


def problem(http: int, sometimes: Sequence[str] = (), *, always: Sequence[str] = ()) -> Response:
    """The response with this HTTP status, described by the titles of its problems."""
    titles = [found.title for found in problems_of(http)] or [HTTPStatus(http).phrase]
    return Response(
        description="; ".join(titles) + ".",
        schema=PROBLEM,
        headers=("X-Request-Id", "Server-Timing", *always),
        sometimes=sometimes,
        types=(PROBLEM_JSON,),
    )
