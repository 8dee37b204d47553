"""Who may ask: bearer keys, looked at before anything else of a request."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

import falcon.asgi

from http_facade.calls import Unauthorized

_OPEN: Final = frozenset({"/livez", "/readyz", "/api/status"})
"""What needs no key. ``/api/status`` tells less to those without one."""

_FOR_BROWSERS: Final = frozenset({"/api/docs", "/api/openapi", "/api/swagger"})
_SAFE: Final = frozenset({"GET", "HEAD"})
_ASK_THE_USER: Final = 'Basic realm="stream-scorer", charset="UTF-8"'


class Keys:
    """Middleware that answers 401 to whoever has no key.

    ``req.context.trusted`` says whether the caller has one; where none are set, everybody is
    trusted. A browser cannot be told a bearer key for a page, so for safe methods the key may also
    come as the password of HTTP Basic. Never for others: a browser sends a password that it
    remembers along with any site's form.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        req.context.trusted = not self._digests or self._is_known(req)
        if req.context.trusted or req.path in _OPEN:
            return
        if req.method in _SAFE and _is_for_browsers(req.path):
            # On a line of its own, or browsers take it for a part of the other challenge. Falcon
            # has this list for cookies; its public methods join equal names with commas.
            resp._extra_headers = [("www-authenticate", _ASK_THE_USER)]
        raise Unauthorized("this needs a key, as Authorization: Bearer KEY")

    def _is_known(self, req: falcon.asgi.Request) -> bool:
        given = _digest(_given(req))
        # Every key is compared, so that the time tells nothing about which one it was.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _given(req: falcon.asgi.Request) -> bytes:
    """The key that a request brings; empty, as no key is, where it brings none."""
    scheme, _, value = (req.get_header("Authorization") or "").partition(" ")
    value = value.strip(" ")
    if scheme.lower() == "bearer":
        return value.encode()
    if scheme.lower() == "basic" and req.method in _SAFE:
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:  # not base64, or not ASCII
            return b""
    return b""


def _is_for_browsers(path: str) -> bool:
    return path in _FOR_BROWSERS or path.startswith("/api/docs/")
