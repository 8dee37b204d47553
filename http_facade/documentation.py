"""The description of the routes, for machines and people."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import falcon.asgi

from http_facade.swagger import Operation, Resource, Response, document, problem


class Swagger:
    """``GET``: the Swagger document of the routes, this one included."""

    operations: ClassVar = (
        Operation(
            method="get",
            description="This document.",
            responses={
                200: Response("Success", {"type": "object"}),
                401: problem(401, ["WWW-Authenticate"]),
                500: problem(500),
            },
        ),
    )

    def __init__(self, routes: Mapping[str, Resource]) -> None:
        self._routes = routes

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.media = self._document

    on_head = on_get

    @cached_property
    def _document(self) -> dict[str, Any]:
        return document(self._routes)
