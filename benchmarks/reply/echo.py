"""A server that answers every request at once with the same bytes: what the load itself can do."""

from __future__ import annotations

import asyncio
import sys

_END = b"\r\n\r\n"


class Echo(asyncio.Protocol):
    """Takes one request at a time, as the load sends them, each in any number of pieces."""

    def __init__(self, response: bytes) -> None:
        self._response = response
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker alone
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        end = self._held.find(_END)
        if end < 0:
            return
        length = int(self._held[:end].rpartition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        if len(self._held) >= end + len(_END) + length:
            self._held = b""
            self._transport.write(self._response)


async def serve(port: int, body: bytes) -> None:
    """Serve for ever."""
    response = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Echo(response), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2].encode()))
