"""What counts as a broker that is there, and what is told of one that is not."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream_scorer.config import Settings
from stream_scorer.kafka.topics import BrokerUnreachable, TopicError, Topics


class FakeAdmin:
    """Tells of a cluster with so many brokers, one number for each time it is asked."""

    def __init__(self, *brokers: int) -> None:
        self._brokers = list(brokers)

    def list_topics(self, timeout: float) -> SimpleNamespace:
        count = self._brokers.pop(0) if len(self._brokers) > 1 else self._brokers[0]
        return SimpleNamespace(brokers=dict.fromkeys(range(count)))


def topics(*brokers: int) -> Topics:
    made = Topics(Settings())
    made._admin = cast("Any", FakeAdmin(*brokers))
    return made


def test_a_cluster_without_brokers_is_not_there_yet() -> None:
    topics(0, 0, 1).wait_for_broker(30)
    with pytest.raises(BrokerUnreachable, match="its cluster has no brokers"):
        topics(0).wait_for_broker(0.2)


def test_a_broker_that_stops_answering_while_topics_are_looked_at_is_told_in_a_line() -> None:
    class TiringAdmin:
        def list_topics(self, topic: str | None = None, *, timeout: float) -> SimpleNamespace:
            if topic is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "Timed out"))
            found = SimpleNamespace(error=None, partitions={0: None})
            return SimpleNamespace(topics={topic: found})

    made = Topics(Settings())
    made._admin = cast("Any", TiringAdmin())
    with pytest.raises(TopicError, match="the cluster is not known: Timed out"):
        made.ensure()


def test_who_is_done_with_topics_leaves_no_client_behind() -> None:
    gc.disable()
    try:
        made = Topics(Settings())
        gone = weakref.ref(made)
        del made
        assert gone() is None
    finally:
        gc.enable()
