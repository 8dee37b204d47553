"""Where an answer goes: the address that its request asks for, checked, or the results topic."""

from __future__ import annotations

import time
from typing import Final, Protocol

from stream_scorer import config
from stream_scorer.kafka.topics import TopicError
from stream_scorer.protocol import Request

LOOK_AGAIN_AFTER: Final = 5.0
"""Seconds until a topic or partition that was not there is asked for again."""


REMEMBERED: Final = 1000
"""Topics that were asked for and not there: callers choose the names, so they are bounded."""


class PartitionCounts(Protocol):
    """What is known of the cluster's topics; ``kafka.topics.Topics`` is one."""

    def partitions(self, topic: str) -> int:
        """How many partitions the topic had at the last look; 0 where it was not there."""

    def look_up(self, topic: str) -> int:
        """Ask the broker."""


class Routes:
    """Finds the address of each answer; asks the broker only for what it has not seen yet."""

    def __init__(self, topics: config.Topics, counts: PartitionCounts) -> None:
        self._topics = topics
        self._counts = counts
        self._look_again: dict[str, float] = {}

    def refusal(self, request: Request) -> str | None:
        """Why the request's reply address cannot be used; ``None`` where it can.

        An unknown partition would poison the producer, so it is found here, before.
        """
        topic, partition = request.reply_topic, request.reply_partition
        if topic is None:
            return None if partition is None else "reply-partition was sent without reply-topic"
        if not self._topics.allows_reply(topic):
            return f"answers may not be sent to topic {topic!r}"
        count = self._count(topic, at_least=(partition or 0) + 1)
        if count == 0:
            return f"reply topic {topic!r} does not exist"
        if partition is not None and partition >= count:
            return f"reply topic {topic!r} has {count} partitions, not a partition {partition}"
        return None

    def address(self, request: Request) -> tuple[str, int]:
        """The answer's topic and partition; the request's reply address must not be refused.

        Without ``reply-partition`` the partition follows the request's, which keeps the order.
        """
        topic = request.reply_topic or self._topics.results
        if request.reply_partition is not None:
            return topic, request.reply_partition
        return topic, self.beside(request, topic)

    def beside(self, request: Request, topic: str) -> int:
        """The partition of a topic that matches the request's partition."""
        return request.partition % (self._count(topic, at_least=1) or 1)

    def _count(self, topic: str, at_least: int) -> int:
        count = self._counts.partitions(topic)
        if count >= at_least:
            return count
        now = time.monotonic()
        if now < self._look_again.get(topic, now):
            return count
        if len(self._look_again) >= REMEMBERED:
            self._look_again.clear()
        self._look_again[topic] = now + LOOK_AGAIN_AFTER
        try:
            return self._counts.look_up(topic)
        except TopicError:
            # The broker does not answer just now: what was known is better than to give up.
            if count == 0:
                raise
            return count
