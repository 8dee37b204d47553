"""The operations as an OpenAPI 3.1 document, with what the workers' answers have told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from http_facade.examples import Example, Examples, is_json, is_text
from http_facade.known import Known
from http_facade.operations import (
    DESCRIPTION,
    HEADERS,
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

VERSION: Final = "3.1.0"


def document(
    routes: Mapping[str, Resource],
    known: Known,
    examples: Examples,
    *,
    keys: bool = False,
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes.

    Args:
        routes: path and resource.
        known: what is known of the model and its plugin.
        examples: payloads to try, by media type.
        keys: whether callers need one.
    """
    components: dict[str, Any] = {"schemas": {"Problem": PROBLEM}}
    if keys:
        components["securitySchemes"] = {KEY: {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": VERSION,
        "info": {
            "title": TITLE,
            "version": __version__,
            "description": f"{DESCRIPTION} What is said here of the model and of the types that it "
            f"takes comes from the last answer.\n\nModel: {_code(known.model)}  \n"
            f"Accepted types: {_code(known.accepts)}",
        },
        "paths": {
            path: {
                operation.method: _operation(path, operation, known, examples, keys)
                for operation in resource.operations
            }
            for path, resource in routes.items()
            if resource.operations
        },
        "components": components,
    }


def _operation(
    path: str,
    operation: Operation,
    known: Known,
    examples: Examples,
    keys: bool,
) -> dict[str, Any]:
    written: dict[str, Any] = {
        "summary": operation.summary,
        "description": operation.description,
        "operationId": operation.name(path),
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {
            str(http): _response(response) for http, response in operation.endings(keys).items()
        },
    }
    if operation.payload is not None:
        written["requestBody"] = _payload(operation.payload, known, examples)
    if keys and operation.needs_key:
        written["security"] = [{KEY: []}]
    return written


def _payload(description: str, known: Known, examples: Examples) -> dict[str, Any]:
    # The first is what a page offers first, and an example can be sent as it stands.
    types = dict.fromkeys((*examples, *(known.accepted or (OCTET_STREAM,))))
    return {
        "description": description,
        "required": True,
        "content": {type_: _content(type_, examples.get(type_)) for type_ in types},
    }


def _content(type_: str, example: Example | None) -> dict[str, Any]:
    if is_json(type_):
        schema: dict[str, Any] = {}
    elif is_text(type_):
        schema = {"type": "string"}
    else:
        # Bytes as they are: where this is said, a page offers to choose a file.
        schema = {"contentMediaType": type_}
    written: dict[str, Any] = {"schema": schema}
    if example is not None:
        written["example"] = example.value
    return written


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required,
        "schema": parameter.schema,
    }


def _response(response: Response) -> dict[str, Any]:
    named = response.schema is PROBLEM
    schema = {"$ref": "#/components/schemas/Problem"} if named else response.schema
    written: dict[str, Any] = {
        "description": response.description,
        "headers": {
            name: {
                "description": HEADERS[name],
                "required": name in response.headers,
                "schema": {"type": "string"},
            }
            for name in (*response.headers, *response.sometimes)
        },
    }
    if response.types:
        written["content"] = {type_: {"schema": schema} for type_ in response.types}
    return written


def _code(text: str) -> str:
    # In Markdown nothing between these marks means anything but itself.
    return f"`{text.replace('`', chr(39))}`"
