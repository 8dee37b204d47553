"""At least once: offsets are committed when all that was published before them is delivered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from stream_scorer.failpoints import failpoint
from stream_scorer.kafka.consumer import LEAVE_TIME, RequestConsumer, Turn
from stream_scorer.kafka.counts import Counts
from stream_scorer.kafka.producer import AnswerProducer, DeliveryFailed
from stream_scorer.protocol import Answer

COMMIT_INTERVAL: Final = 0.1
"""Seconds between commits under load; bounds what is scored again after a crash."""

LIGHT_TURN: Final = 512
"""Up to so many requests in a turn their answers are sent at once: ``linger.ms`` would be most of
what their callers wait for. Larger turns fill batches by themselves."""

_DELIVERY_WAIT: Final = 0.05

_REFUSALS: Final = 4
"""How often a record and what stands in for it can be refused before all of it is delivered."""


class AtLeastOnce:
    """Publishes turns without waiting, and commits a turn while the next one is scored.

    The broker's acknowledgements are not followed one by one, which would cost as much as scoring
    does: a commit waits until nothing is in flight. By then the next turn has been scored, so
    there is seldom anything to wait for.

    Args:
        consumer: whose turns are delivered.
        producer: what publishes.
        waiting: called again and again while the broker is slow; may raise to give up.
    """

    def __init__(
        self, consumer: RequestConsumer, producer: AnswerProducer, waiting: Callable[[], None]
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._waiting = waiting
        self.counts = Counts()
        # The next offset to read, by partition, of what is published and of what is committed.
        self._published: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._committed_at = 0.0

    def commit_beginnings(self, first: dict[int, int]) -> None:
        """Commit, when next that is done, where partitions are read from that nothing is known of.

        Args:
            first: their first offsets.
        """
        for partition, offset in first.items():
            self._published.setdefault(partition, offset)

    def deliver(self, turn: Turn, answers: Sequence[Answer]) -> None:
        """Queue a turn's answers, once those before are committed where that is due.

        Raises:
            DeliveryFailed: an answer could not be delivered.
        """
        while self._due():
            if self._producer.flush(_DELIVERY_WAIT) == 0:
                self._commit()
            else:
                self._waiting()
        middle = len(answers) // 2
        for number, answer in enumerate(answers):
            if number == middle:
                failpoint("mid_produce")
            request = answer.request
            partition = request.partition
            # Revoked since the turn was taken: it is, or will be, answered by another. Asked for
            # each, since partitions may go while the queue is full.
            if self._consumer.still_owned(turn, partition):
                self._producer.publish(answer)
                # And again: what went meanwhile must not be committed from here any more.
                if self._consumer.still_owned(turn, partition):
                    self._published[partition] = request.offset + 1
        failpoint("after_produce")
        if len(answers) <= LIGHT_TURN:
            self._producer.flush(0.001)

    def serve(self) -> None:
        """Learn of failures, and commit when that is due and all is delivered.

        Raises:
            DeliveryFailed: an answer could not be delivered.
        """
        self._producer.poll()
        if self._due() and self._producer.in_flight() == 0:
            self._commit()

    def in_flight(self) -> int:
        """Records that are published and not delivered."""
        return self._producer.in_flight()

    def revoked(self, partitions: Sequence[int], timeout: float) -> None:
        """Deliver and commit what is published of partitions that are about to go."""
        deadline = monotonic() + timeout
        # After a failure nothing is committed; the loop meets it again.
        with suppress(DeliveryFailed):
            left = 1
            for _ in range(_REFUSALS):
                seconds = max(0.001, deadline - monotonic())
                # Waiting for room would poll the consumer, which has just called us.
                left = self._producer.flush(seconds, wait_for_room=False)
                if left == 0:
                    break
            offsets = {p: self._published[p] for p in partitions if p in self._published}
            # A commit of nothing is an error to the client.
            if offsets and left == 0:
                self._consumer.commit(offsets, timeout=max(LEAVE_TIME, deadline - monotonic()))
                self.counts.commits += 1
        self.lost(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Forget partitions that are another's already."""
        for partition in partitions:
            self._published.pop(partition, None)

    def abandon(self) -> int:
        """Forget what is not delivered, at the very end; how many records that was."""
        return self._producer.abandon()

    def raise_failure(self) -> None:
        """There is none that the loop does not meet by itself."""

    def _due(self) -> bool:
        if not self._published or monotonic() - self._committed_at < COMMIT_INTERVAL:
            return False
        return self._consumer.commit_failed or self._published != self._committed

    def _commit(self) -> None:
        """Commit what is published; all of it has to be delivered."""
        self._committed = dict(self._published)
        self._committed_at = monotonic()
        self._consumer.commit_failed = False
        self._consumer.commit(self._committed)
        self.counts.commits += 1
        failpoint("after_commit")
