"""Topics of a run: made, filled with requests, watched while answers arrive, and deleted."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from benchmarks.clients import PRODUCER, Properties
from benchmarks.workload import Workload

_TIMEOUT: Final = 30.0
_SILENT: Final = 0
_LARGEST: Final = 1_200_000
_HELD_FOR: Final = 600_000

WARM_UP: Final = b"warm-up"
"""The correlation of a request that is not part of the run."""


@contextmanager
def topic(bootstrap: str, partitions: int) -> Iterator[str]:
    """A topic with a name of its own, which notes when the broker appended each record."""
    name = f"bench-{uuid.uuid4()}"
    # A variable, since the futures fail when their client is gone.
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": _SILENT})
    config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(_LARGEST)}
    for created in admin.create_topics([NewTopic(name, partitions, 1, config=config)]).values():
        created.result(_TIMEOUT)
    _wait_until_usable(bootstrap, name, partitions)
    try:
        yield name
    finally:
        for deleted in admin.delete_topics([name]).values():
            deleted.result(_TIMEOUT)


def _wait_until_usable(bootstrap: str, name: str, partitions: int) -> None:
    # A new topic has leaders a moment after it was created, and they know of it a moment later.
    ends = Ends(bootstrap, name, partitions)
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            ends.total()
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


class RequestProducer:
    """Asks: produces a workload's requests, each with its number as the correlation.

    Args:
        bootstrap: the broker.
        properties: of the client, beside the usual ones.
    """

    def __init__(self, bootstrap: str, properties: Properties | None = None) -> None:
        self._producer = Producer(
            {**PRODUCER, "bootstrap.servers": bootstrap, "message.max.bytes": _LARGEST}
            | {"log_level": _SILENT, "delivery.report.only.error": True, "on_delivery": _raise}
            | (properties or {})
        )

    def produce(self, topic: str, workload: Workload, count: int, partitions: int) -> None:
        """Produce ``count`` requests, spread evenly, and wait until they are acknowledged."""
        for number in range(count):
            self.send(topic, workload, number, partitions)
        self.flush()

    def send(self, topic: str, workload: Workload, number: int, partitions: int) -> None:
        """Produce one request; waits only where the client's queue is full."""
        correlation = b"%d" % number
        self._send(topic, workload, workload.payload(number), correlation, number % partitions)

    def warm_up(self, topic: str, workload: Workload) -> None:
        """Produce one request that is not part of the run."""
        self._send(topic, workload, workload.payload(0), WARM_UP, 0)
        self.flush()

    def hold(self) -> None:
        """Keep what is produced from now on out of sight, until ``release``."""
        self._producer.init_transactions(_TIMEOUT)
        self._producer.begin_transaction()

    def release(self) -> None:
        """Let everything that is held be seen at once."""
        self._producer.commit_transaction(_TIMEOUT)

    def _send(
        self, topic: str, workload: Workload, payload: bytes, correlation: bytes, partition: int
    ) -> None:
        content_type = workload.content_type.encode()
        headers = [("content-type", content_type), *workload.headers]
        if not workload.by_key:
            headers.append(("correlation-id", correlation))
        key = correlation if workload.by_key else None
        while True:
            try:
                # A list of another type for the client's signature.
                self._producer.produce(topic, payload, key, partition, headers=[*headers])
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def flush(self) -> None:
        """Wait until all is acknowledged."""
        if self._producer.flush(_TIMEOUT):
            raise TimeoutError("the requests cannot be delivered")


@contextmanager
def held_backlog(
    bootstrap: str, topic: str, workload: Workload, count: int, partitions: int
) -> Iterator[Callable[[], None]]:
    """Requests that nobody can read before what this gives is called.

    They are in a transaction that is open until then. So whoever works them off can be complete
    before the first one, and has the machine for itself from then on.
    """
    properties: Properties = {"transactional.id": topic, "transaction.timeout.ms": _HELD_FOR}
    producer = RequestProducer(bootstrap, properties)
    producer.hold()
    producer.produce(topic, workload, count, partitions)
    yield producer.release


class Ends:
    """Watches how far a topic has been written."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": _SILENT})
        self._latest = {
            TopicPartition(topic, number): OffsetSpec.latest()  # type: ignore[no-untyped-call]
            for number in range(partitions)
        }

    def total(self) -> int:
        """The records on it, and the marks of transactions."""
        found = self._admin.list_offsets(self._latest, request_timeout=_TIMEOUT)
        return sum(place.result(_TIMEOUT).offset for place in found.values())


def _raise(error: object, _: object) -> None:
    if error is not None:
        raise KafkaException(error)
