"""The operations as a Swagger 2.0 document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from http_facade.operations import (
    DESCRIPTION,
    HEADERS,
    JSON,
    KEY,
    OCTET_STREAM,
    PROBLEM,
    TITLE,
    Operation,
    Parameter,
    Resource,
    Response,
)
from stream_scorer import __version__
from stream_scorer.protocol import PROBLEM_JSON


def document(routes: Mapping[str, Resource], *, keys: bool = False) -> dict[str, Any]:
    """The Swagger 2.0 document of these routes; ``keys`` when callers need one."""
    written: dict[str, Any] = {
        "swagger": "2.0",
        "basePath": "/",
        "paths": {
            path: {
                operation.method: _operation(path, operation, keys)
                for operation in resource.operations
            }
            for path, resource in routes.items()
            if resource.operations
        },
        "info": {"title": TITLE, "version": __version__, "description": DESCRIPTION},
        "produces": [JSON, PROBLEM_JSON],
        "tags": [{"name": "default", "description": "Default namespace"}],
        "definitions": {"Problem": PROBLEM},
    }
    if keys:
        # Version 2 has no word for bearer keys.
        written["securityDefinitions"] = {
            KEY: {"type": "apiKey", "in": "header", "name": "Authorization"}
        }
    return written


def _operation(path: str, operation: Operation, keys: bool) -> dict[str, Any]:
    endings = operation.endings(keys)
    written: dict[str, Any] = {
        "responses": {str(http): _response(response) for http, response in endings.items()},
        "summary": operation.summary,
        "description": operation.description,
        "operationId": operation.name(path),
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "produces": [*dict.fromkeys(_types(endings.values()))],
        "tags": ["default"],
    }
    if operation.payload is not None:
        written["consumes"] = [JSON, OCTET_STREAM, "*/*"]
        written["parameters"].insert(
            0,
            {
                "name": "payload",
                "in": "body",
                "description": operation.payload,
                "required": True,
                "schema": {"type": "string", "format": "binary"},
            },
        )
    if keys and operation.needs_key:
        written["security"] = [{KEY: []}]
    return written


def _types(responses: Iterable[Response]) -> Iterable[str]:
    for response in responses:
        yield from response.types


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required,
        **parameter.schema,
    }


def _response(response: Response) -> dict[str, Any]:
    written: dict[str, Any] = {
        "description": response.description,
        "headers": {
            name: {"type": "string", "description": HEADERS[name]}
            for name in (*response.headers, *response.sometimes)
        },
    }
    if response.types:
        named = response.schema is PROBLEM
        written["schema"] = {"$ref": "#/definitions/Problem"} if named else response.schema
    return written
