"""A foreign client: it knows the wire contract and confluent-kafka, and nothing of the product.

Header names are spelled out here on purpose: a change of the contract must break these tests.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

TIMEOUT = 60.0


@dataclass(frozen=True)
class Record:
    """A consumed record, its headers read once."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]

    def header(self, name: str) -> str:
        """The last header of this name, as text; ``""`` where there is none."""
        values = [value for key, value in self.headers if key == name]
        return values[-1].decode() if values else ""

    @property
    def correlation_id(self) -> str:
        return self.header("correlation-id")

    @property
    def status(self) -> str:
        return self.header("status")


def record_of(message: Message) -> Record:
    headers: Any = message.headers() or []
    value: Any = message.value()
    key: Any = message.key()
    return Record(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        key,
        value,
        list(headers),
    )


@dataclass
class Send:
    """A request to send."""

    payload: bytes | None
    content_type: str | None = "text/plain"
    key: bytes | None = None
    partition: int | None = None
    headers: dict[str, bytes] = field(default_factory=dict)
    correlation_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class RequestProducer:
    """Sends requests, each acknowledged by the broker when ``send`` returns."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.topic = topic
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "log_level": 0,
                "message.max.bytes": 10_000_000,
                # What is sent again after a broker's hiccup keeps its order, and comes once.
                "enable.idempotence": True,
            }
        )

    def send(self, *requests: Send) -> list[str]:
        """Send the requests in order; return their correlation ids."""
        failures: list[KafkaError] = []

        def report(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failures.append(error)

        for request in requests:
            headers: dict[str, bytes] = {"correlation-id": request.correlation_id.encode()}
            if request.content_type is not None:
                headers["content-type"] = request.content_type.encode()
            headers |= request.headers
            self._producer.produce(
                self.topic,
                request.payload,
                request.key,
                -1 if request.partition is None else request.partition,
                headers=list(headers.items()),
                on_delivery=report,
            )
            self._producer.poll(0)
        left = self._producer.flush(TIMEOUT)
        assert left == 0 and not failures, f"not delivered: {left}, {failures}"
        return [request.correlation_id for request in requests]


class RecordReader:
    """Reads topics from where they ended when it was made; uncommitted records too."""

    def __init__(self, bootstrap: str, *topics: str, isolation: str = "read_uncommitted") -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"reader-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "isolation.level": isolation,
                "fetch.wait.max.ms": 10,
                "fetch.message.max.bytes": 10_000_000,
                "log_level": 0,
            }
        )
        places = []
        for topic in topics:
            metadata = self._consumer.list_topics(topic, timeout=TIMEOUT)
            for partition in metadata.topics[topic].partitions:
                place = TopicPartition(topic, partition)
                place.offset = self._end(place)
                places.append(place)
        self._consumer.assign(places)

    def _end(self, place: TopicPartition) -> int:
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                return self._consumer.get_watermark_offsets(place, TIMEOUT)[1]
            except KafkaException:
                # A partition that was just created has no leader for a moment.
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._consumer.close()

    def poll(self, timeout: float) -> list[Record]:
        """What is there within ``timeout`` seconds."""
        first = self._consumer.poll(timeout)
        messages = [] if first is None else [first, *self._consumer.consume(10_000, 0)]
        for message in messages:
            assert message.error() is None, message.error()
        return [record_of(message) for message in messages]

    def read(self, count: int, timeout: float = TIMEOUT) -> list[Record]:
        """The next ``count`` records; fails when they do not come."""
        records: list[Record] = []
        deadline = time.monotonic() + timeout
        while len(records) < count:
            assert time.monotonic() < deadline, f"{len(records)} of {count} records came"
            records += self.poll(0.2)
        return records

    def answers(self, correlation_ids: Iterable[str], timeout: float = TIMEOUT) -> list[Record]:
        """Read until each of these has an answer; duplicates are in the list too."""
        missing = set(correlation_ids)
        records: list[Record] = []
        deadline = time.monotonic() + timeout
        while missing:
            assert time.monotonic() < deadline, f"{len(missing)} answers did not come"
            fresh = self.poll(0.2)
            records += fresh
            missing -= {record.correlation_id for record in fresh}
        return records

    def rest(self, quiet: float = 1.0) -> list[Record]:
        """What else is there, until nothing has come for ``quiet`` seconds."""
        records: list[Record] = []
        while fresh := self.poll(quiet):
            records += fresh
        return records


def in_order(records: Sequence[Record]) -> Iterator[tuple[int, list[Record]]]:
    """The records of each partition, as they stand there."""
    for partition in sorted({record.partition for record in records}):
        yield partition, [record for record in records if record.partition == partition]
