"""At least once: an offset is committed when everything before it is delivered."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from stream_scorer.failpoints import failpoint
from stream_scorer.kafka.consumer import RequestConsumer, Turn
from stream_scorer.kafka.counts import Counts
from stream_scorer.kafka.offsets import OffsetTracker
from stream_scorer.kafka.producer import AnswerProducer, DeliveryFailed
from stream_scorer.protocol import Answer

COMMIT_INTERVAL: Final = 0.1
"""Seconds between commits under load; bounds what is scored again after a crash."""

LIGHT_TURN: Final = 16
"""Up to so many requests in a turn there is no backlog: their answers are sent at once."""


class AtLeastOnce:
    """Publishes turns without waiting, and commits behind the delivery reports.

    Args:
        consumer: whose turns are delivered.
        producer: what publishes; its ``delivered`` must be ``tracker.finished``.
        tracker: what is started and finished.
    """

    def __init__(
        self, consumer: RequestConsumer, producer: AnswerProducer, tracker: OffsetTracker
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._tracker = tracker
        self.counts = Counts()
        self._committed: dict[int, int] = {}
        self._committed_at = 0.0

    def deliver(self, turn: Turn, answers: Sequence[Answer]) -> None:
        """Queue a turn's answers; waits only while the producer's queue is full.

        Raises:
            DeliveryFailed: an answer could not be delivered.
        """
        # Revoked since the turn was taken: it is, or will be, answered by another.
        owned = [a for a in answers if self._consumer.still_owned(turn, a.request.partition)]
        for answer in owned:
            self._tracker.started(answer.request.partition, answer.request.offset)
        for number, answer in enumerate(owned):
            if number == len(owned) // 2:
                failpoint("mid_produce")
            # Asked again: partitions may go while the queue is full.
            if self._consumer.still_owned(turn, answer.request.partition):
                self._producer.publish(answer)
        failpoint("after_produce")
        if len(answers) <= LIGHT_TURN:
            self._producer.flush(0.001)

    def serve(self) -> None:
        """Serve delivery reports, and commit when the time has come.

        Raises:
            DeliveryFailed: an answer could not be delivered.
        """
        self._producer.poll()
        if monotonic() - self._committed_at < COMMIT_INTERVAL:
            return
        offsets = self._tracker.committable()
        # A commit of nothing is an error to the client.
        if offsets and (self._consumer.commit_failed or offsets != self._committed):
            self._consumer.commit_failed = False
            self._consumer.commit(offsets, wait=False)
            self.counts.commits += 1
            failpoint("after_commit")
        self._committed = offsets
        self._committed_at = monotonic()

    def in_flight(self) -> int:
        """Requests that are published and not delivered."""
        return self._tracker.in_flight()

    def revoked(self, partitions: Sequence[int], timeout: float) -> None:
        """Deliver and commit what is published of partitions that are about to go."""
        # After a failure what is finished counts all the same; the loop meets it again.
        with suppress(DeliveryFailed):
            self._producer.flush(max(0.001, timeout))
        if offsets := self._tracker.committable(partitions):
            self._consumer.commit(offsets, wait=True)
            self.counts.commits += 1
        self._tracker.forget(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Forget partitions that are another's already."""
        self._tracker.forget(partitions)

    def abandon(self) -> int:
        """Forget what is not delivered, at the very end; how many records that was."""
        return self._producer.abandon()
