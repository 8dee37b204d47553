"""Callers of the facade: threads that ask over connections kept alive, and keep what each got."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from tests.facade_server import PATIENCE, Server

TURNS_PER_CONNECTION = 5
"""After so many calls a connection is opened anew: connections that all come at once may all be
taken by the same process."""

REFUSED_PAUSE = 0.02
"""Seconds a caller rests that nothing came of its call, as nobody calls without end."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call and its end.

    ``status`` is ``None`` where the connection ended without an answer; ``began`` is on the
    monotonic clock, and ``seconds`` how long it took.
    """

    payload: bytes
    began: float
    status: int | None
    body: bytes
    seconds: float

    @property
    def wrong(self) -> bool:
        """Whether it got a result that is not its own: an echo of another payload."""
        return self.status == 200 and self.body != self.payload

    @property
    def ending(self) -> str:
        """How it ended: ``answered``, ``reset``, or the problem's name."""
        if self.status is None:
            return "reset"
        if self.status == 200:
            return "answered"
        return str(json.loads(self.body)["type"]).rpartition(":")[2]


def call_each(server: Server, payloads: Iterable[bytes]) -> Iterator[Call]:
    """Ask one after the other over one connection, which is opened anew when it ends."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        for payload in payloads:
            began = time.monotonic()
            status: int | None = None
            body = b""
            try:
                connection.request("POST", "/api/predict", payload)
                response = connection.getresponse()
                body = response.read()
                status = response.status
            except TimeoutError:
                raise  # a caller that hangs, which no fault excuses
            except (OSError, http.client.HTTPException):
                connection.close()
            yield Call(payload, began, status, body, time.monotonic() - began)
            if status not in (200, 504):
                time.sleep(REFUSED_PAUSE)
    finally:
        connection.close()


def all_calls(servers: Sequence[Server], callers: int, turns: int) -> list[Call]:
    """What comes of so many callers, each at one of the servers, that ask so often each."""

    def caller(number: int) -> list[Call]:
        server = servers[number % len(servers)]
        payloads = [f"{number}/{turn}".encode() for turn in range(turns)]
        return [
            call
            for first in range(0, turns, TURNS_PER_CONNECTION)
            for call in call_each(server, payloads[first : first + TURNS_PER_CONNECTION])
        ]

    with ThreadPoolExecutor(callers) as threads:
        return [call for calls in threads.map(caller, range(callers)) for call in calls]


@contextmanager
def load(server: Server, callers: int) -> Iterator[list[Call]]:
    """So many callers that ask on and on until the block ends; what they have got until now."""
    stopping = threading.Event()
    made: list[Call] = []

    def caller(number: int) -> None:
        def payloads() -> Iterator[bytes]:
            turn = 0
            while not stopping.is_set():
                yield f"{number}/{turn}".encode()
                turn += 1

        for call in call_each(server, payloads()):
            made.append(call)

    with ThreadPoolExecutor(callers) as threads:
        running: list[Future[None]] = [threads.submit(caller, each) for each in range(callers)]
        try:
            yield made
        finally:
            stopping.set()
        for each in running:
            each.result()
