"""A worker that answers every request with its own payload, or with what a test makes of it.

It speaks the wire contract and nothing else of the project, so it can stand in for any worker.
"""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, Producer, TopicPartition

Headers = list[tuple[str, str | bytes | None]]


@dataclass(frozen=True)
class Asked:
    """A request as the worker read it."""

    headers: dict[str, bytes]
    payload: bytes
    partition: int


@dataclass(frozen=True)
class Sent:
    """A reply as the worker sends it, ``delay`` seconds after it has read the request."""

    topic: str
    partition: int
    headers: Headers
    body: bytes
    delay: float = 0.0


def reply(asked: Asked, **changed: bytes) -> Sent:
    """The reply to a request: its payload. ``changed`` headers are named with underscores."""
    headers = {
        "correlation-id": asked.headers["correlation-id"],
        "status": b"ok",
        "content-type": asked.headers.get("content-type", b"application/octet-stream"),
        "model": b"echo; version=1",
        "server-timing": b"queue;dur=1.000, predict;dur=2.000",
    } | {name.replace("_", "-"): value for name, value in changed.items()}
    return Sent(
        topic=asked.headers["reply-topic"].decode(),
        partition=int(asked.headers["reply-partition"]),
        headers=list(headers.items()),
        body=asked.payload,
    )


def once(asked: Asked) -> list[Sent]:
    return [reply(asked)]


class EchoWorker:
    """Answers the requests of one topic in a thread, with what ``answer`` makes of each."""

    def __init__(
        self,
        bootstrap: str,
        requests: str,
        answer: Callable[[Asked], Iterable[Sent]] = once,
    ) -> None:
        self.asked: list[Asked] = []
        self._answer = answer
        self._stopping = threading.Event()
        self._later: list[tuple[float, int, Sent]] = []
        self._numbers = itertools.count()  # of two that are due at once, the first goes first
        connection = {
            "bootstrap.servers": bootstrap,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
        self._producer = Producer(
            # What is too large, the topic says.
            connection | {"linger.ms": 0, "message.max.bytes": 20_000_000}
        )
        self._consumer = Consumer(
            connection
            | {
                "group.id": "echo",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 5,
            }
        )
        found = self._consumer.list_topics(requests, timeout=30).topics[requests]
        # By number: the beginning is looked up, and on a topic made just now that may fail.
        self._consumer.assign([TopicPartition(requests, number, 0) for number in found.partitions])
        self._thread = threading.Thread(target=self._run, name="echo", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(timeout=30)
        self._consumer.close()
        self._producer.flush(1)

    def send(self, sent: Iterable[Sent]) -> None:
        """Send replies now, whatever their delay; from any thread."""
        for one in sent:
            self._produce(one)
        self._producer.flush(0.001)

    def _produce(self, sent: Sent) -> None:
        self._producer.produce(
            sent.topic, sent.body, partition=sent.partition, headers=sent.headers
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            message = self._consumer.poll(self._send_due())
            if message is None:
                continue
            if message.error() is not None:
                sys.stdout.write(f"the echo worker: {message.error()}\n")
                continue
            headers = message.headers() or []
            assert isinstance(headers, list)
            asked = Asked(
                {name: value for name, value in headers if isinstance(value, bytes)},
                message.value() or b"",
                message.partition() or 0,
            )
            self.asked.append(asked)
            now = time.monotonic()
            for one in self._answer(asked):
                if one.delay:
                    heapq.heappush(self._later, (now + one.delay, next(self._numbers), one))
                else:
                    self._produce(one)

    def _send_due(self) -> float:
        """Send what is due, and return the seconds for which nothing else is."""
        self._producer.poll(0)
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._produce(heapq.heappop(self._later)[2])
        return min(0.1, self._later[0][0] - now) if self._later else 0.1
