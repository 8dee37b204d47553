"""A consumer group, as its coordinator sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient

from benchmarks.case import RunFailed

LOOK_EVERY: Final = 0.1
_TIMEOUT: Final = 30.0


class Group:
    """Tells when a group has shared out its partitions.

    Args:
        bootstrap: the broker.
        name: the group's.
        partitions: of the one topic that it takes from.
    """

    def __init__(self, bootstrap: str, name: str, partitions: int) -> None:
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        self._name = name
        self._partitions = partitions

    def wait_shared(self, members: int, wait: Callable[[float], None], timeout: float) -> None:
        """Wait until ``shared_by(members)``.

        Args:
            members: how many.
            wait: sleeps for some seconds, and raises where a member has ended.
            timeout: seconds.

        Raises:
            RunFailed: not in time.
        """
        deadline = time.monotonic() + timeout
        while not self.shared_by(members):
            if time.monotonic() > deadline:
                raise RunFailed(f"no group of {members} after {timeout:.0f} s")
            wait(LOOK_EVERY)

    def shared_by(self, members: int) -> bool:
        """Whether so many members own all partitions, as evenly as can be, and none is moving."""
        (described,) = self._admin.describe_consumer_groups(
            [self._name], request_timeout=_TIMEOUT
        ).values()
        try:
            group = described.result(_TIMEOUT)
        except KafkaException:
            return False  # nobody has joined it yet
        if group.state != ConsumerGroupState.STABLE or len(group.members) != members:
            return False
        owned = [len(member.assignment.topic_partitions) for member in group.members]
        return sum(owned) == self._partitions and max(owned) - min(owned) <= 1
