"""Load over HTTP on loopback: callers that wait for their answers, and callers that do not.

Both run on one asyncio loop over bare transports. There is a callback for each piece of a response
and no task, stream or client library: with a server that answers at once this sends several times
what any contender answers (contender ``echo`` of the case ``reply`` shows how much).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from benchmarks.case import RunFailed
from benchmarks.reply.exchanges import Exchange
from benchmarks.reply.http_responses import Response, ResponseParser

HOST: Final = "127.0.0.1"

_TICK: Final = 0.002
"""Seconds between two looks at what is due in an open loop."""

_MOST_CONNECTIONS: Final = 2000
"""Connections of an open loop: twice the requests that a facade lets wait by default."""

_DRAIN: Final = 30.0
"""Seconds that the last answers may take after the load has ended."""


class WrongAnswer(RunFailed):
    """A contender answered with a wrong value, or not at all: what it measures means nothing."""


class _Connection(asyncio.Protocol):
    """One keep-alive connection; ``answered`` is told of each response, ``None`` for none."""

    def __init__(self, answered: Callable[[_Connection, Response | None], None]) -> None:
        self._answered = answered
        self._parser = ResponseParser()
        self._transport: asyncio.Transport
        self.exchange: Exchange | None = None
        self.began = 0.0
        self.usable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("not a connection to write to")
        self._transport = transport
        self.usable = True

    def send(self, exchange: Exchange, began: float) -> None:
        self.exchange = exchange
        self.began = began
        self._transport.write(exchange.request)

    def data_received(self, data: bytes) -> None:
        for response in self._parser.feed(data):
            self._answered(self, response)

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        if self.exchange is not None:
            self._answered(self, None)

    def close(self) -> None:
        self.usable = False
        self.exchange = None
        self._transport.close()


async def _connect(
    port: int, answered: Callable[[_Connection, Response | None], None]
) -> _Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: _Connection(answered), HOST, port)
    return connection


class ClosedLoop:
    """Callers that each wait for their answer before they ask again.

    Attributes:
        latencies_ms: of the right answers that came while ``counting``, in ms.
        counting: whether answers count; false while the contender warms up.

    Raises:
        WrongAnswer: by ``closed_loop``, at its end: an answer was not the right one.
    """

    def __init__(self, exchanges: Sequence[Exchange]) -> None:
        self.latencies_ms: list[float] = []
        self.counting = False
        self._exchanges = exchanges
        self._next = 0
        self._wrong: Response | None = None
        self._failed = False
        self._stopping = False
        self._busy = 0
        self._idle = asyncio.Event()

    async def _start(self, port: int, callers: int) -> list[_Connection]:
        connections = [await _connect(port, self._answered) for _ in range(callers)]
        self._busy = callers
        for connection in connections:
            self._ask(connection)
        return connections

    async def _stop(self, connections: Sequence[_Connection]) -> None:
        self._stopping = True
        self.counting = False
        try:
            async with asyncio.timeout(_DRAIN):
                await self._idle.wait()
        except TimeoutError:
            raise WrongAnswer(f"{self._busy} requests are not answered") from None
        finally:
            for connection in connections:
                connection.close()
        if self._failed:
            what = "the connection was closed" if self._wrong is None else repr(self._wrong)
            raise WrongAnswer(f"not the right answer: {what}")

    def _ask(self, connection: _Connection) -> None:
        exchange = self._exchanges[self._next]
        self._next = (self._next + 1) % len(self._exchanges)
        connection.send(exchange, time.perf_counter())

    def _answered(self, connection: _Connection, response: Response | None) -> None:
        now = time.perf_counter()
        exchange = connection.exchange
        connection.exchange = None
        if exchange is None or response is None or not exchange.is_right(response):
            self._wrong = response
            self._failed = self._stopping = True
        elif self.counting:
            self.latencies_ms.append((now - connection.began) * 1000)
        if self._stopping:
            self._busy -= 1
            if self._busy == 0:
                self._idle.set()
        else:
            self._ask(connection)


@asynccontextmanager
async def closed_loop(
    port: int, exchanges: Sequence[Exchange], callers: int
) -> AsyncIterator[ClosedLoop]:
    """Keep ``callers`` requests in flight within the block.

    Args:
        port: where the contender listens.
        exchanges: what is asked, in turn.
        callers: how many connections, each with one request in flight.

    Raises:
        WrongAnswer: at the end of the block: an answer was not the right one, or did not come.
    """
    load = ClosedLoop(exchanges)
    connections = await load._start(port, callers)
    try:
        yield load
    finally:
        await load._stop(connections)


@dataclass(slots=True)
class Outcomes:
    """What became of the requests of an open loop.

    Attributes:
        good: for each right answer within the deadline, when it was due (seconds from the first
            request) and its latency in ms, counted from when it was due, not from when it was sent.
        late: right answers that the caller no longer waited for.
        refused: answers with another status than 200, by status; 0 for a connection that was
            refused or lost.
        unsent: requests given up before there was a connection for them.
        unanswered: requests without any answer at the end.
        wrong: a right status with a wrong value, the last one.
    """

    good: list[tuple[float, float]] = field(default_factory=list)
    late: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    unsent: int = 0
    unanswered: int = 0
    wrong: Response | None = None


class _OpenLoop:
    def __init__(self, port: int, deadline: float) -> None:
        self.outcomes = Outcomes()
        self.busy: set[_Connection] = set()
        self.idle: list[_Connection] = []
        self.connecting: set[asyncio.Task[None]] = set()
        self.waiting: deque[tuple[Exchange, float]] = deque()
        self._port = port
        self._deadline = deadline
        self.began = time.perf_counter()

    def send(self, exchange: Exchange, due: float) -> None:
        """Send on a connection that waits for nothing, as soon as there is one."""
        self.waiting.append((exchange, due))
        self._serve()
        if self.waiting and len(self.connecting) + len(self.busy) < _MOST_CONNECTIONS:
            # Beside the others: that a server is slow to accept is no reason to send less.
            task = asyncio.create_task(self._connect())
            self.connecting.add(task)
            task.add_done_callback(self.connecting.discard)

    @property
    def unfinished(self) -> int:
        """How many requests have neither an answer nor been given up."""
        return len(self.busy) + len(self.waiting)

    def give_up(self) -> None:
        """Drop what could not be sent within its deadline."""
        now = time.perf_counter() - self.began
        while self.waiting and now - self.waiting[0][1] > self._deadline:
            self.waiting.popleft()
            self.outcomes.unsent += 1

    def close(self) -> None:
        """Close all connections, whatever they wait for."""
        for task in [*self.connecting]:
            task.cancel()
        for connection in (*self.busy, *self.idle):
            connection.close()

    def _serve(self) -> None:
        self.give_up()
        while self.waiting and self.idle:
            connection = self.idle.pop()
            if connection.usable:
                exchange, due = self.waiting.popleft()
                self.busy.add(connection)
                connection.send(exchange, self.began + due)

    async def _connect(self) -> None:
        try:
            connection = await _connect(self._port, self._answered)
        except OSError:
            return  # what waits for it is sent on another, or given up
        self.idle.append(connection)
        self._serve()

    def _answered(self, connection: _Connection, response: Response | None) -> None:
        began, exchange = connection.began, connection.exchange
        latency = time.perf_counter() - began
        connection.exchange = None
        self.busy.discard(connection)
        if exchange is None or response is None:
            self.outcomes.refused[0] += 1
            return
        self.idle.append(connection)
        self._serve()
        if exchange.is_right(response):
            if latency <= self._deadline:
                self.outcomes.good.append((began - self.began, latency * 1000))
            else:
                self.outcomes.late += 1
        elif response.status == 200:
            self.outcomes.wrong = response
        else:
            self.outcomes.refused[response.status] += 1


async def open_loop(
    port: int,
    exchanges: Sequence[Exchange],
    *,
    rate: float,
    seconds: float,
    deadline: float,
    ended: Callable[[], None] = lambda: None,
) -> Outcomes:
    """Send ``rate`` requests a second, whatever becomes of them.

    Each request has a connection of its own while it waits. What is sent later than it was due has
    waited already; what could not be sent within its deadline is not sent any more.

    Args:
        port: where the contender listens.
        exchanges: what is asked, in turn.
        rate: requests a second.
        seconds: for how long requests are sent.
        deadline: seconds after which an answer is worth nothing.
        ended: called when the last request is sent, before its answer is there.

    Raises:
        WrongAnswer: an answer had a wrong value.
    """
    loop = _OpenLoop(port, deadline)
    began = loop.began
    count = int(rate * seconds)
    sent = 0
    while sent < count:
        due_by_now = min(count, int((time.perf_counter() - began) * rate) + 1)
        while sent < due_by_now:
            loop.send(exchanges[sent % len(exchanges)], sent / rate)
            sent += 1
        await asyncio.sleep(_TICK)
    ended()
    give_up = time.perf_counter() + deadline + _DRAIN
    while loop.unfinished and time.perf_counter() < give_up:
        await asyncio.sleep(_TICK)
        loop.give_up()
    loop.outcomes.unanswered = loop.unfinished
    loop.close()
    if loop.outcomes.wrong is not None:
        raise WrongAnswer(f"not the right answer: {loop.outcomes.wrong!r}")
    return loop.outcomes
