"""What a connection may take of the server: a place, memory, and time.

gunicorn's ``asgi`` worker waits without end for the headers of a connection's first request and for
a client to read its response, and takes any number of connections. This stands between it and the
event loop, and is written against asyncio's interfaces alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

_RECEIVE: Final = memoryview(bytearray(64 * 1024))
"""Where every connection receives: what is there at once of hundreds of them is bounded by it."""

_END_OF_HEADERS: Final = b"\r\n\r\n"

_BACKLOG: Final = 2048
"""Connections that may wait to be taken."""

_TOO_SLOW: Final = b"408 Request Timeout"
_FULL: Final = b"503 Service Unavailable\r\nRetry-After: 1"


class Places:
    """How many connections there are, and how many there may be."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0


class Connection(asyncio.BufferedProtocol):
    """Hands a connection's events on to gunicorn's protocol, within bounds.

    Args:
        inner: gunicorn's protocol, made when the connection is taken.
        places: shared by all connections of the process.
        patience: seconds, from its beginning, in which the headers of the first request must have
            come (gunicorn's keep-alive time bounds those of later ones), and in which whatever is
            written must be read.
    """

    def __init__(
        self, inner: Callable[[], asyncio.Protocol], places: Places, patience: float
    ) -> None:
        self._make = inner
        self._places = places
        self._patience = patience
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._headers_seen = False
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._places.taken >= self._places.most:
            self._refuse(_FULL)
            return
        self._places.taken += 1
        self._inner = self._make()
        self._inner.connection_made(transport)
        # So that all that is not read counts, and a response is done when nothing of it is left.
        self._transport.set_write_buffer_limits(high=0)
        self._start(self._headers_late)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _RECEIVE

    def buffer_updated(self, nbytes: int) -> None:
        if self._inner is None:
            return
        data = bytes(_RECEIVE[:nbytes])
        if not self._headers_seen:
            self._headers_seen = _END_OF_HEADERS in self._tail + data
            self._tail = (self._tail + data)[-3:]
            if self._headers_seen:
                self._stop()
        self._inner.data_received(data)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()
            self._headers_seen = True  # or it was refused: from here on the timer is for this
            self._start(self._transport.abort)

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._stop()
            self._inner.resume_writing()

    def eof_received(self) -> bool | None:
        return None if self._inner is None else self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self._inner is not None:
            self._places.taken -= 1
            # Whoever waits until it can write waits for nothing now.
            self._inner.resume_writing()
            self._inner.connection_lost(exc)

    def _start(self, act: Callable[[], None]) -> None:
        self._stop()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._patience, act)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _headers_late(self) -> None:
        self._refuse(_TOO_SLOW)

    def _refuse(self, status: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status
        )
        self._transport.close()


def bound(loop: asyncio.AbstractEventLoop, most: int, patience: float) -> None:
    """Have every server that is made on this loop from now on bound its connections.

    Args:
        loop: the loop of a gunicorn worker that does not serve yet.
        most: connections at a time; more are told to come back.
        patience: seconds, as ``Connection`` has them.
    """
    create_server = cast("Callable[..., Awaitable[asyncio.Server]]", loop.create_server)
    places = Places(most)

    def bounded(
        factory: Callable[[], asyncio.Protocol], *place: Any, **options: Any
    ) -> Awaitable[asyncio.Server]:
        # gunicorn's own; without it asyncio listens anew, for no more than 100.
        options.setdefault("backlog", _BACKLOG)
        return create_server(lambda: Connection(factory, places, patience), *place, **options)

    loop.create_server = bounded  # type: ignore[method-assign,assignment]
