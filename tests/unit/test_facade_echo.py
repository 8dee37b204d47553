"""A worker that answers every request with its own payload, and that it does.

It speaks the wire contract and nothing else of the project, so it can stand in for any worker.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.kafka_server import MakeTopics

Headers = list[tuple[str, str | bytes | None]]


@dataclass(frozen=True)
class Asked:
    """A request as the worker read it."""

    headers: dict[str, bytes]
    payload: bytes
    partition: int


@dataclass(frozen=True)
class Sent:
    """A reply as the worker sends it."""

    topic: str
    partition: int
    headers: Headers
    body: bytes


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
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "linger.ms": 0,
                "message.max.bytes": 20_000_000,  # what is too large, the topic says
                "log_level": 0,
            }
        )
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "echo",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 5,
                "log_level": 0,
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
        """Send replies now, whoever asks for them."""
        for one in sent:
            self._producer.produce(
                one.topic, one.body, partition=one.partition, headers=one.headers
            )
        self._producer.flush(0.001)

    def _run(self) -> None:
        while not self._stopping.is_set():
            message = self._consumer.poll(0.1)
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
            self.send(self._answer(asked))


def test_it_answers_at_the_reply_address_with_the_correlation_id(
    embedded_broker: str, topics: MakeTopics
) -> None:
    requests, replies = topics(4, "requests", "replies")
    producer = Producer({"bootstrap.servers": embedded_broker, "log_level": 0})
    consumer = Consumer(
        {"bootstrap.servers": embedded_broker, "group.id": "test", "fetch.wait.max.ms": 5}
    )
    consumer.assign([TopicPartition(replies, 2, OFFSET_BEGINNING)])
    producer.produce(
        requests,
        b"payload",
        headers=[("correlation-id", b"me"), ("reply-topic", replies), ("reply-partition", b"2")],
    )
    producer.flush(10)
    with EchoWorker(embedded_broker, requests):
        message = consumer.poll(30)
    consumer.close()
    assert message is not None
    assert message.error() is None
    headers = dict(message.headers() or [])
    assert (message.value(), headers["correlation-id"], headers["status"]) == (
        b"payload",
        b"me",
        b"ok",
    )
