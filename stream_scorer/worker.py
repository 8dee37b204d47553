"""The worker's loop: take a turn, score it, publish the answers, commit what is delivered."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set
from concurrent.futures import TimeoutError as NotYet
from dataclasses import replace
from time import monotonic, time
from typing import Final, Protocol

from stream_scorer.admission import Admission
from stream_scorer.background import BackgroundThread
from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.failpoints import failpoint
from stream_scorer.health import Pulse
from stream_scorer.kafka.at_least_once import AtLeastOnce
from stream_scorer.kafka.consumer import AssignmentListener, RequestConsumer, Turn
from stream_scorer.kafka.counts import Counts
from stream_scorer.kafka.exactly_once import ExactlyOnce
from stream_scorer.kafka.producer import AnswerProducer
from stream_scorer.kafka.routes import Routes
from stream_scorer.kafka.topics import Topics
from stream_scorer.metrics import Metrics
from stream_scorer.protocol import Answer, Request, Signature, Status, problem

_log = logging.getLogger(__name__)

POLL_TIMEOUT: Final = 0.1
"""Seconds to wait for a request; bounds how late delivery reports and signals are seen."""

PATIENCE: Final = 0.2
"""Seconds a turn may be scored before the owner begins to poll beside it."""

FIRST_TURN: Final = 64
"""The most requests in the first turn, before it is known how large answers are."""


class Scores(Protocol):
    """What the worker needs of a scorer."""

    def score(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer every request, in order."""


class Delivery(Protocol):
    """How answers and offsets get to the broker together: ``AtLeastOnce`` or ``ExactlyOnce``."""

    counts: Counts

    def commit_beginnings(self, first: dict[int, int]) -> None:
        """Commit where partitions are read from of which nothing is committed yet."""

    def deliver(self, turn: Turn, answers: Sequence[Answer]) -> None:
        """Publish a turn's answers, so that its offsets are committed with or after them."""

    def serve(self) -> None:
        """Do what is due; called again and again, and waits for no more than a failure takes."""

    def in_flight(self) -> int:
        """How much is published and not delivered."""

    def revoked(self, partitions: Sequence[int], timeout: float) -> None:
        """Partitions are about to go: get what is theirs to the broker, in ``timeout`` seconds.

        Raises nothing, being called by the consumer's client; see ``raise_failure``.
        """

    def lost(self, partitions: Sequence[int]) -> None:
        """Partitions are gone."""

    def abandon(self) -> int:
        """Forget what is not delivered; how much that was."""

    def raise_failure(self) -> None:
        """Raise what went wrong while partitions went, if anything did."""


class DrainTimeout(OperationError):
    """``worker.drain_timeout`` has passed: what is not answered yet is left to others."""


class Worker:
    """One member of the worker group.

    ``step`` is one turn of the loop. Everything runs in the calling thread, which owns the
    consumer, but for the scoring, which has a thread of its own.

    Args:
        settings: the settings.
        topics: the cluster's topics, ensured.
        scorer: what answers requests.
        model: the ``model`` header of every answer.
        content_types: the media ranges that are scored; the ``accepts`` header of replies.
        metrics: where to count.
        pulse: where to tell that the loop moves, and that the worker belongs to its group.

    Raises:
        ConfigError: librdkafka refuses a property.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        scorer: Scores,
        model: str,
        content_types: Sequence[str],
        metrics: Metrics | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self._settings = settings
        self._routes = Routes(settings.topics, topics)
        self._metrics = metrics or Metrics(settings.worker.slot)
        self._metrics.model(model)
        self._pulse = pulse or Pulse(settings.worker.ready_file)
        self._counted = Counts()
        self._drain_until: float | None = None
        self._admission = Admission()
        self._scored = 0
        self._most = FIRST_TURN
        self._consumer = RequestConsumer(
            settings,
            AssignmentListener(assigned=self._assigned, revoked=self._revoked, lost=self._lost),
        )
        self._delivery = self._make_delivery(
            Signature.of(model, content_types), topics.largest_request
        )
        self._scoring = BackgroundThread(scorer.score, "scoring")

    def _make_delivery(self, signature: Signature, largest_request: int) -> Delivery:
        if self._settings.worker.delivery == "exactly_once":
            return ExactlyOnce(
                self._settings,
                self._consumer,
                self._routes,
                signature=signature,
                waiting=self._wait_for_broker,
                largest_request=largest_request,
            )
        producer = AnswerProducer(
            self._settings,
            self._routes,
            signature=signature,
            queue_full=self._stay_alive,
            largest_request=largest_request,
        )
        return AtLeastOnce(self._consumer, producer, waiting=self._stay_alive)

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._drain_until is not None

    def stop(self) -> None:
        """Finish the turn in hand within ``worker.drain_timeout``, then leave. Only sets a flag."""
        if self._drain_until is None:
            self._drain_until = monotonic() + self._settings.worker.drain_timeout

    def run(self) -> None:
        """Work until ``stop``; leaves the group in every case.

        Raises:
            ConsumerFailed: the consumer cannot go on.
            Fenced: another process took over under the same name.
            DeliveryFailed: an answer could not be delivered.
            DrainTimeout: the turn in hand was not finished in time after ``stop``.
        """
        self._consumer.subscribe()
        try:
            while not self.stopping:
                self.step()
        finally:
            self._close()
        self._delivery.raise_failure()

    def step(self) -> None:
        """One turn of the loop."""
        turn = self._consumer.take(POLL_TIMEOUT, self._most)
        # Before the turn is scored: what is committed then must not be gone back behind.
        if beginnings := self._consumer.beginnings():
            self._delivery.commit_beginnings(beginnings)
        if turn.requests:
            failpoint("after_poll")
            self._take_turn(turn)
        self._delivery.serve()
        self._observe(0)

    def _take_turn(self, turn: Turn) -> None:
        began = monotonic()
        self._observe(len(turn.requests))
        answers = self._answer(turn.requests)
        scored = monotonic()
        self._delivery.deliver(turn, answers)
        ended = monotonic()
        self._admission.took((ended - began) * 1000, self._scored)
        self._most = self._next_turn(answers)
        self._metrics.turn.observe(len(answers))
        self._metrics.stage("queue", max(answer.queue for answer in answers) / 1000)
        self._metrics.stage("publish", ended - scored)
        self._metrics.answered(answers)

    def _next_turn(self, answers: Sequence[Answer]) -> int:
        # Answers are in hand all at once, like requests: they have the same bound in bytes, which
        # can only be kept by what the last ones took.
        worker = self._settings.worker
        average = sum(len(answer.body) for answer in answers) // len(answers) + 1
        return max(1, min(worker.max_turn, worker.max_turn_bytes // average, 2 * self._most))

    def _answer(self, requests: Sequence[Request]) -> list[Answer]:
        now = int(time() * 1000)
        expired = self._expired(requests, now)
        refusals = [
            self._refuse(request, number in expired) for number, request in enumerate(requests)
        ]
        admitted = [
            request for request, refusal in zip(requests, refusals, strict=True) if refusal is None
        ]
        self._scored = len(admitted)
        scored = iter(self._score(admitted) if admitted else ())
        answers = [refusal or next(scored) for refusal in refusals]
        for answer in answers:
            answer.queue = max(0, now - answer.request.timestamp)
        return answers

    def _expired(self, requests: Sequence[Request], now: int) -> Set[int]:
        """Which of them, by their numbers, are not worth scoring any more."""
        left = {
            number: request.deadline - now
            for number, request in enumerate(requests)
            if request.deadline is not None
        }
        return self._admission.refused(left, len(requests) - len(left)) if left else frozenset()

    def _refuse(self, request: Request, expired: bool) -> Answer | None:
        refusal = self._routes.refusal(request)
        if refusal is not None:
            # It cannot be answered where it asks; the results topic is always there.
            request.reply_topic = request.reply_partition = None
        if (fault := request.fault or refusal) is not None:
            return problem(request, Status.INVALID_REQUEST, fault)
        if expired:
            return problem(request, Status.EXPIRED, "too little time was left to score it")
        return None

    def _score(self, requests: Sequence[Request]) -> list[Answer]:
        scoring = self._scoring.submit(requests)
        try:
            return scoring.result(PATIENCE)
        except NotYet:
            # A slow predict must not cost us the group: keep polling beside it.
            while not scoring.done():
                self._stay_alive()
            return scoring.result()

    def _stay_alive(self) -> None:
        self._consumer.keep_alive(PATIENCE / 4)
        self._delivery.serve()
        self._metrics.paused.set(self._consumer.paused)
        self._pulse.beat()
        self._check_drain()

    def _wait_for_broker(self) -> None:
        # Without a poll: the transaction in hand must not lose its partitions unseen.
        self._pulse.beat()
        self._check_drain()

    def _check_drain(self) -> None:
        if self._drain_until is not None and monotonic() >= self._drain_until:
            raise DrainTimeout("worker.drain_timeout passed before the turn was finished")

    def _assigned(self, _: Sequence[int]) -> None:
        self._pulse.set_ready(True)
        self._metrics.rebalanced("assigned")

    def _revoked(self, partitions: Sequence[int]) -> None:
        self._metrics.rebalanced("revoked")
        self._delivery.revoked(partitions, self._drain_time())

    def _lost(self, partitions: Sequence[int]) -> None:
        # The group has gone on without us; an assignment tells when we are back in it.
        self._pulse.set_ready(False)
        self._metrics.rebalanced("lost")
        self._delivery.lost(partitions)

    def _drain_time(self) -> float:
        if self._drain_until is None:
            return self._settings.worker.drain_timeout
        return self._drain_until - monotonic()

    def _observe(self, in_hand: int) -> None:
        self._pulse.beat()
        metrics, counts, counted = self._metrics, self._delivery.counts, self._counted
        metrics.in_flight.set(in_hand + self._delivery.in_flight())
        metrics.lag.set(self._consumer.lag)
        metrics.assigned.set(self._consumer.assigned)
        metrics.paused.set(0)
        if counts != counted:
            metrics.commits.inc(counts.commits - counted.commits)
            metrics.aborts.inc(counts.aborts - counted.aborts)
            metrics.renewals.inc(counts.renewals - counted.renewals)
            self._counted = replace(counts)

    def _close(self) -> None:
        self._pulse.set_ready(False)
        failpoint("before_close")
        self._consumer.close(self._drain_time())
        # Partitions may have come while we left.
        self._pulse.set_ready(False)
        if left := self._delivery.abandon():
            _log.error("%d records were not delivered; their requests will be read again", left)
