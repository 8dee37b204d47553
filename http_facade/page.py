"""The documentation page: Swagger UI from the files of an installed package, and our own two."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

import falcon.asgi

from http_facade.operations import TEXT, Operation, Resource, Response, problem
from stream_scorer.errors import SetupError

_PACKAGE: Final = "flask_swagger_ui"
_OURS: Final = Path(__file__).parent / "docs"

_TYPES: Final[Mapping[str, str]] = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "index.css": "text/css",
    "favicon-32x32.png": "image/png",
}
"""The package's files that the page loads; it has more."""

_CHUNK: Final = 64 * 1024
"""Bytes of a file in memory for each caller that it is sent to."""

# Whoever finds a way to write into the page shall find no other server to load from or to tell.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Page:
    """``GET``: the documentation as a page, where requests can be tried."""

    operations: ClassVar = (
        Operation(
            method="get",
            summary="This page",
            description="The description as a page, where requests can be tried.",
            responses={200: Response("Success", TEXT, types=("text/html",)), 500: problem(500)},
        ),
    )

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.set_header("Content-Security-Policy", _POLICY)
        _send(resp, _OURS / "index.html", "text/html; charset=utf-8")

    on_head = on_get


class Asset:
    """``GET``: a file that the page loads. The documents leave these out."""

    operations: ClassVar[tuple[Operation, ...]] = ()

    def __init__(self, path: Path, media_type: str) -> None:
        self._path = path
        self._type = media_type

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        _send(resp, self._path, self._type)
        # Only once the file is found: a problem is not to be kept.
        resp.set_header("Cache-Control", "public, max-age=3600")

    on_head = on_get


def page() -> Mapping[str, Resource]:
    """The routes of the page.

    Raises:
        SetupError: a file of Swagger UI is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)  # without running it: that would load Flask
    if found is None or found.origin is None:
        raise SetupError(f"the package {_PACKAGE} is not installed")
    folder = Path(found.origin).parent / "dist"
    files = {folder / name: media_type for name, media_type in _TYPES.items()}
    for path in files:
        if not path.is_file():
            raise SetupError(f"the package {_PACKAGE} has no file dist/{path.name}")
    files[_OURS / "init.js"] = "text/javascript"
    assets = {f"/api/docs/{path.name}": Asset(path, kind) for path, kind in files.items()}
    return {"/api/docs": Page(), **assets}


def _send(resp: falcon.asgi.Response, path: Path, media_type: str) -> None:
    resp.content_type = media_type
    resp.set_stream(_chunks(path), path.stat().st_size)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    # Read where it is asked for: a chunk comes from the page cache sooner than from a thread.
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
