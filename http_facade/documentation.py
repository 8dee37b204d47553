"""The description of the routes, for machines."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import falcon.asgi
import orjson

from http_facade import openapi, swagger
from http_facade.calls import Caller
from http_facade.examples import Examples
from http_facade.known import known
from http_facade.operations import Operation, Resource, Response, problem


class Swagger:
    """``GET``: the Swagger 2.0 document of the routes, this one included."""

    operations: ClassVar = (
        Operation(
            method="get",
            summary="Swagger 2.0",
            description="This description as Swagger 2.0.",
            responses={
                200: Response("Success", {"type": "object"}),
                500: problem(500),
                503: problem(503, ["Retry-After"]),
            },
        ),
    )

    def __init__(self, routes: Mapping[str, Resource], *, keys: bool) -> None:
        self._routes = routes
        self._keys = keys

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.data = self._document

    on_head = on_get

    @cached_property
    def _document(self) -> bytes:
        return orjson.dumps(swagger.document(self._routes, keys=self._keys))


class OpenApi:
    """``GET``: the OpenAPI 3.1 document of the routes, with what is known of the plugin now."""

    operations: ClassVar = (
        Operation(
            method="get",
            summary="OpenAPI 3.1",
            description="This description as OpenAPI 3.1, with the model and the types that the "
            "last answer told of.",
            responses={
                200: Response("Success", {"type": "object"}),
                500: problem(500),
                503: problem(503, ["Retry-After"]),
            },
        ),
    )

    def __init__(
        self, routes: Mapping[str, Resource], client: Caller, examples: Examples, *, keys: bool
    ) -> None:
        self._routes = routes
        self._client = client
        self._keys = keys
        self._examples = examples

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.data = orjson.dumps(
            openapi.document(self._routes, known(self._client), self._examples, keys=self._keys)
        )

    on_head = on_get
