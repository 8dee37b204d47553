"""What a connection may take, over real sockets, with a server that only echoes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from http_facade.connections import bound

PATIENCE = 20.0


class Echo(asyncio.Protocol):
    """Stands for gunicorn's protocol."""

    made: list[Echo]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.events: list[str] = []
        self.lost = asyncio.get_running_loop().create_future()
        self.made.append(self)

    def data_received(self, data: bytes) -> None:
        self.events.append("data")
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(None)


@pytest.fixture(autouse=True)
def none_made() -> None:
    Echo.made = []


@asynccontextmanager
async def serving(*, most: int = 10, patience: float = PATIENCE) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    bound(loop, most, patience)
    try:
        server = await loop.create_server(Echo, "127.0.0.1", 0)
    finally:
        del loop.create_server
    async with server:
        yield server.sockets[0].getsockname()[1]


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), PATIENCE)


async def rest(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), PATIENCE)


@pytest.mark.parametrize("parts", [[b"GET\r\n\r\n"], [b"GET\r", b"\n", b"\r", b"\nbody"]])
async def test_headers_that_have_come_end_the_waiting(parts: list[bytes]) -> None:
    async with serving(patience=1) as port:
        reader, writer = await connect(port)
        for part in parts:
            writer.write(part)
            await reader.readexactly(len(part))
        await asyncio.sleep(1.2)
        writer.write(b"more")
        assert await asyncio.wait_for(reader.readexactly(4), PATIENCE) == b"more"
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_headers_that_do_not_come_end_the_connection(sent: bytes) -> None:
    async with serving(patience=0.5) as port:
        reader, writer = await connect(port)
        writer.write(sent)
        assert b"HTTP/1.1 408 Request Timeout\r\n" in await rest(reader)
        await asyncio.wait_for(Echo.made[0].lost, PATIENCE)
        writer.close()


async def test_more_connections_than_there_may_be_are_told_to_come_back() -> None:
    async with serving(most=1) as port:
        _, first = await connect(port)
        reader, second = await connect(port)
        told = await rest(reader)
        assert told.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
        assert told.endswith(b"\r\n\r\n")
        second.close()
        first.close()
        assert len(Echo.made) == 1
        await asyncio.wait_for(Echo.made[0].lost, PATIENCE)
        reader, third = await connect(port)
        third.write(b"there is room\r\n\r\n")
        assert await asyncio.wait_for(reader.readexactly(17), PATIENCE) == b"there is room\r\n\r\n"
        third.close()


@pytest.mark.parametrize("closed", [False, True])
async def test_a_response_that_nobody_reads_is_given_up(closed: bool) -> None:
    async with serving(patience=1) as port:
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"\r\n\r\n")
        while not Echo.made or not Echo.made[0].events:
            await asyncio.sleep(0.01)
        (echo,) = Echo.made
        echo.transport.write(b"x" * 30_000_000)
        if closed:
            echo.transport.close()
        await asyncio.wait_for(echo.lost, PATIENCE)
        # Whoever waited for room is told that there is nothing to wait for.
        assert echo.events == ["data", "pause", "resume", "lost"]
        assert echo.transport.get_write_buffer_size() == 0
        client.close()


async def test_a_response_that_is_read_takes_its_time() -> None:
    async with serving(patience=PATIENCE) as port:
        reader, writer = await connect(port)
        size = 8_000_000
        writer.write(b"\r\n\r\n")
        while not Echo.made or not Echo.made[0].events:
            await asyncio.sleep(0.01)
        (echo,) = Echo.made
        echo.transport.write(b"x" * size)
        assert echo.transport.get_write_buffer_size() > 0
        await asyncio.wait_for(reader.readexactly(4 + size), PATIENCE)
        while "resume" not in echo.events:
            await asyncio.sleep(0.01)
        assert echo.transport.get_write_buffer_size() == 0
        writer.close()
