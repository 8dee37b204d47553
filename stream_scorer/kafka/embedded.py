"""The embedded broker: librdkafka's mock cluster, for trying things without Kafka.

It speaks the real protocol over TCP, in memory: it keeps about 5 MB a partition, forgets
everything at the end, and knows no transactions that hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from confluent_kafka import Producer

PARTITIONS: Final = 4
"""Partitions of each of its topics, which cannot be chosen."""

_TIMEOUT: Final = 10.0


class EmbeddedBroker:
    """A broker that lives as long as this object; other processes reach it at ``bootstrap``."""

    def __init__(self) -> None:
        # The cluster belongs to the client that was made with this property.
        self._owner = Producer({"test.mock.num.brokers": 1, "log_level": 2})
        (broker,) = self._owner.list_topics(timeout=_TIMEOUT).brokers.values()
        self.bootstrap: Final = f"{broker.host}:{broker.port}"

    def create_topics(self, names: Iterable[str]) -> None:
        """Create topics of ``PARTITIONS`` partitions; asking for one is what creates it."""
        for name in names:
            self._owner.list_topics(name, timeout=_TIMEOUT)
