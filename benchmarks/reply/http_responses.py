"""HTTP/1.1 responses, cut out of what a connection delivers."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_END: Final = b"\r\n\r\n"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)


class Response(NamedTuple):
    """What is compared with the right answer."""

    status: int
    body: bytes


class BadResponse(Exception):
    """What came is not a response that can be told from the next one."""


class ResponseParser:
    """Gives each response of a connection, in order, as soon as its last byte is there.

    Bodies must come with a ``Content-Length``, as every contender sends them: this costs the load
    little, so that it is the contender that is measured.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[Response]:
        """The responses that these bytes complete; none where more are needed.

        Raises:
            BadResponse: no status line or no ``Content-Length``.
        """
        held = self._held + data if self._held else data
        responses = []
        while (end := held.find(_END)) >= 0:
            # With the line break that ends the last header.
            head = held[: end + 2]
            status = _STATUS_LINE.match(head)
            length = _LENGTH.search(head)
            if status is None or length is None:
                raise BadResponse(f"not a response with a length: {head[:200]!r}")
            start = end + len(_END)
            stop = start + int(length[1])
            if len(held) < stop:
                break
            responses.append(Response(int(status[1]), held[start:stop]))
            held = held[stop:]
        self._held = held
        return responses
