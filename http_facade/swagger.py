"""What the routes do, in words for a machine: the operations, and the Swagger 2.0 made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from http_facade.problems import problems_of
from stream_scorer import __version__
from stream_scorer.protocol import PROBLEM_JSON, PROBLEM_TYPE_PREFIX

Schema = Mapping[str, Any]

JSON: Final = "application/json"
_TEXT: Final[Schema] = {"type": "string"}

PROBLEM_SCHEMA: Final[Schema] = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri", "example": PROBLEM_TYPE_PREFIX + "timeout"},
        "title": _TEXT,
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": _TEXT,
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

_HEADERS: Final[Mapping[str, str]] = {
    "X-Request-Id": "The request's id: the caller's where it is well formed, else a new one.",
    "X-Model": "The model that answered: `URI; version=N`.",
    "Server-Timing": "Milliseconds in each stage, as `stage;dur=…`.",
    "WWW-Authenticate": "How to send a key.",
    "Retry-After": "Seconds after which to try again.",
    "Location": "Where to ask for the answer later.",
    "Preference-Applied": "The preferences that were understood.",
}


@dataclass(frozen=True)
class Response:
    """One way an operation may end.

    ``schema`` is that of its body; ``headers`` are names that this module has words for.
    """

    description: str
    schema: Schema
    headers: tuple[str, ...] = ("X-Request-Id", "Server-Timing")


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    description: str
    responses: Mapping[int, Response]
    produces: Sequence[str] = (JSON, PROBLEM_JSON)
    consumes: Sequence[str] = ()
    parameters: Sequence[Schema] = field(default=())


class Resource(Protocol):
    """What stands behind a path."""

    @property
    def operations(self) -> Sequence[Operation]:
        """Its methods, one for each ``on_…`` it has."""


def problem(http: int, headers: Sequence[str] = ()) -> Response:
    """The response with this HTTP status, described by the titles of its problems."""
    return Response(
        description="; ".join(found.title for found in problems_of(http)) + ".",
        schema={"$ref": "#/definitions/Problem"},
        headers=("X-Request-Id", "Server-Timing", *headers),
    )


def document(routes: Mapping[str, Resource]) -> dict[str, Any]:
    """The Swagger 2.0 document of these routes."""
    return {
        "swagger": "2.0",
        "basePath": "/",
        "paths": {
            path: {
                operation.method: _operation(path, operation) for operation in resource.operations
            }
            for path, resource in routes.items()
        },
        "info": {
            "title": "stream-scorer",
            "version": __version__,
            "description": "Scores payloads with an MLflow model behind Kafka topics.",
        },
        "produces": [JSON, PROBLEM_JSON],
        "tags": [{"name": "default", "description": "Default namespace"}],
        "definitions": {"Problem": PROBLEM_SCHEMA},
    }


def _operation(path: str, operation: Operation) -> dict[str, Any]:
    name = path.removeprefix("/api").strip("/").replace("/", "_")
    written: dict[str, Any] = {
        "responses": {
            str(http): _response(response) for http, response in operation.responses.items()
        },
        "description": operation.description,
        "operationId": f"{operation.method}_{name}",
        "parameters": list(operation.parameters),
        "produces": list(operation.produces),
        "tags": ["default"],
    }
    if operation.consumes:
        written["consumes"] = list(operation.consumes)
    return written


def _response(response: Response) -> dict[str, Any]:
    return {
        "description": response.description,
        "schema": response.schema,
        "headers": {
            name: {"type": "string", "description": _HEADERS[name]} for name in response.headers
        },
    }
