"""Sending requests and collecting their answers, for the command line: blocking, one thread."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.kafka.clients import (
    BrokerTrouble,
    consumer_properties,
    producer_properties,
    wrong_property,
)
from stream_scorer.kafka.messages import UnreadableHeaders, read_headers
from stream_scorer.kafka.topics import Topics, end_offset
from stream_scorer.protocol import (
    CONTENT_TYPE,
    CORRELATION_ID,
    REPLY_TOPIC,
    STATUS,
    Header,
    last_header,
)

MAX_IN_FLIGHT: Final = 100
MAX_BYTES_IN_FLIGHT: Final = 1_000_000
"""So little that the embedded broker, which keeps 5 MB a partition, drops none."""

_CONNECT_TIMEOUT: Final = 10.0


class NotSent(OperationError):
    """A request could not be delivered to its topic."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request to send."""

    number: int
    payload: bytes
    content_type: str
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """The answer to one request; ``latency`` in seconds since it was sent."""

    request: Outgoing
    status: str
    content_type: str
    body: bytes
    latency: float


class RequestSender:
    """Sends requests with bounded in-flight and yields their answers as they come.

    Raises:
        ConfigError: librdkafka refuses a property.
        BrokerUnreachable: no broker answers.
        TopicError: a topic is missing and cannot be created.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        topics = Topics(settings)
        topics.wait_for_broker(_CONNECT_TIMEOUT)
        topics.ensure_for_caller()
        replies = settings.topics.replies
        trouble = BrokerTrouble()
        try:
            self._producer = Producer(producer_properties(settings) | {"error_cb": trouble})
            self._consumer = Consumer(
                consumer_properties(settings)
                | {
                    "group.id": f"{settings.worker.group}-send",
                    "auto.offset.reset": "error",
                    "error_cb": trouble,
                }
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error, settings.kafka) from None
        # Explicit offsets: an answer that comes before the first fetch is not missed.
        self._consumer.assign(
            [
                TopicPartition(replies, number, end_offset(self._consumer, replies, number))
                for number in range(topics.partitions(replies))
            ]
        )
        self._run = secrets.token_hex(8)
        self._in_flight: dict[bytes, tuple[Outgoing, float]] = {}
        self._bytes = 0
        self._failure: str | None = None

    def exchange(self, requests: Iterable[Outgoing], timeout: float) -> Iterator[Received]:
        """Send everything, and yield each answer once; ends when all came or none comes any more.

        Args:
            requests: what to send; taken as room comes free.
            timeout: seconds without any answer after which the rest is given up.

        Raises:
            NotSent: the broker did not take a request.
        """
        waiting = iter(requests)
        following = next(waiting, None)
        progress = time.monotonic()
        while following is not None or self._in_flight:
            while following is not None and self._has_room(following):
                self._send(following)
                following = next(waiting, None)
            self._producer.flush(0.001)
            if self._failure is not None:
                raise NotSent(f"a request was not taken by the broker: {self._failure}")
            for received in self._receive():
                progress = time.monotonic()
                yield received
            if time.monotonic() - progress > timeout:
                return

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()
        self._producer.purge()

    def _has_room(self, request: Outgoing) -> bool:
        if not self._in_flight:
            return True
        return (
            len(self._in_flight) < MAX_IN_FLIGHT
            and self._bytes + len(request.payload) <= MAX_BYTES_IN_FLIGHT
        )

    def _send(self, request: Outgoing) -> None:
        topics = self._settings.topics
        correlation_id = f"{self._run}.{request.number}".encode()
        self._in_flight[correlation_id] = (request, time.monotonic())
        self._bytes += len(request.payload)
        headers: list[Header] = [
            (CONTENT_TYPE, request.content_type.encode()),
            (CORRELATION_ID, correlation_id),
            (REPLY_TOPIC, topics.replies.encode()),
        ]

        def report(error: object, _: object) -> None:
            if error is not None:
                self._failure = str(error)

        try:
            self._producer.produce(
                topics.requests,
                request.payload,
                request.key,
                headers=[*headers],
                on_delivery=report,
            )
        except KafkaException as error:
            self._failure = error.args[0].str()

    def _receive(self) -> Iterator[Received]:
        first = self._consumer.poll(0.05)
        messages = [] if first is None else [first, *self._consumer.consume(MAX_IN_FLIGHT, 0)]
        for message in messages:
            if message.error() is not None:
                continue
            try:
                headers = read_headers(message)
            except UnreadableHeaders:
                continue
            correlation_id = last_header(headers, CORRELATION_ID)
            # Others' answers pass by here too, and a duplicate of ours is not ours any more.
            found = self._in_flight.pop(correlation_id or b"", None)
            if found is None:
                continue
            request, sent = found
            self._bytes -= len(request.payload)
            yield Received(
                request,
                (last_header(headers, STATUS) or b"").decode(),
                (last_header(headers, CONTENT_TYPE) or b"").decode(),
                message.value() or b"",
                time.monotonic() - sent,
            )
