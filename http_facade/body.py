"""The body of a request: refused by its headers where that is enough, counted while it is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import falcon.asgi

from http_facade.budget import Share

_DRAIN_BYTES: Final = 8 * 1024 * 1024
_DRAIN_SECONDS: Final = 2.0


class PayloadTooLarge(Exception):
    """The body is larger than ``limits.payload_bytes``."""


class EncodingNotSupported(Exception):
    """The body is compressed."""


class BodyIncomplete(Exception):
    """The client stopped in mid-body, or sent it too slowly."""


class BodyEvents:
    """An ASGI ``receive`` that begins at once, and tells a body that ended from one that broke off.

    Falcon waits for the first part of a body before it looks at the request. Here it is first given
    an empty part, so that a request is refused by its headers before a client that sent
    ``Expect: 100-continue`` is told to go on. And Falcon takes a client that went away for the end
    of the body; here that raises. ``received`` counts the bytes.
    """

    def __init__(self, receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self.received = 0
        self._receive = receive
        self._begun = False
        self._more = True

    async def __call__(self) -> Mapping[str, Any]:
        if not self._begun:
            self._begun = True
            return {"type": "http.request", "body": b"", "more_body": True}
        event = await self._receive()
        if event["type"] == "http.disconnect":
            if self._more:
                self._more = False
                raise BodyIncomplete("the body broke off")
            return event
        self.received += len(event.get("body", b""))
        self._more = event.get("more_body", False)
        return event

    async def drain(self) -> None:
        """After the response: take what the client still sends, within bounds.

        A connection that is closed with bytes unread is reset, and the client may then lose the
        response that says why its body was not wanted.
        """
        if not self._more:
            return
        dropped = 0
        with contextlib.suppress(TimeoutError, BodyIncomplete):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while self._more and dropped < _DRAIN_BYTES:
                    dropped += len((await self()).get("body", b""))


async def read_body(req: falcon.asgi.Request, limit: int, share: Share) -> bytes:
    """Read a body of at most ``limit`` bytes, which ``share`` then holds.

    They count as they arrive, so that whoever sends slowly, or only says that much will come,
    takes no room from others.

    Raises:
        EncodingNotSupported: it has a content encoding.
        PayloadTooLarge: it is larger; told from ``Content-Length`` before anything is read.
        BodyIncomplete: the client went away.
        Overloaded: too many bytes are in hand.
    """
    encoding = req.get_header("Content-Encoding")
    if encoding is not None and encoding.strip().lower() not in {"", "identity"}:
        raise EncodingNotSupported("send the payload without Content-Encoding")
    codings = req.get_header("Transfer-Encoding", default="").lower().split(",")
    if not {coding.strip() for coding in codings} <= {"", "identity", "chunked"}:
        # The server takes `gzip, chunked` too, and undoes only the chunks.
        raise EncodingNotSupported("send the payload in no transfer coding but chunked")
    length = req.content_length
    if length is not None and length > limit:
        raise PayloadTooLarge(f"the payload has {length} bytes; at most {limit} are taken")
    parts: list[bytes] = []
    size = 0
    async for part in req.stream:
        size += len(part)
        if size > limit:
            raise PayloadTooLarge(f"the payload has more than the {limit} bytes that are taken")
        share.add(len(part))
        parts.append(part)
    return b"".join(parts)
