"""What counts as a broker that is there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from stream_scorer.config import Settings
from stream_scorer.kafka.topics import BrokerUnreachable, Topics


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
