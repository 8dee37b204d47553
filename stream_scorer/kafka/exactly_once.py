"""Exactly once: the answers, dead letters and offsets of a turn in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from time import monotonic
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from stream_scorer.background import BackgroundThread
from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.failpoints import failpoint
from stream_scorer.kafka.clients import (
    ONLY_ERRORS,
    BrokerTrouble,
    producer_properties,
    wrong_property,
)
from stream_scorer.kafka.consumer import Fenced, RequestConsumer, Turn
from stream_scorer.kafka.counts import Counts
from stream_scorer.kafka.outputs import REFUSALS, Output, Record
from stream_scorer.kafka.producer import DeliveryFailed
from stream_scorer.kafka.refusals import right_missing
from stream_scorer.kafka.routes import Routes
from stream_scorer.protocol import Answer, Request, Signature

_log = logging.getLogger(__name__)

TRANSACTION_TIMEOUT: Final = 15.0
"""Seconds until the broker aborts a transaction that nobody ends."""

REQUEST_TIMEOUT: Final = 10.0
"""Seconds until the client gives up a request to a broker, whatever it asked for."""

_HANGS_AFTER: Final = 2.5 * REQUEST_TIMEOUT
"""Seconds after which an attempt to commit, of two requests, does not come back any more."""

_CONNECTIONS: Final = 6
"""The ``log_level`` at which librdkafka tells of connections."""

_RETRY_WAIT: Final = 0.1

_FENCED: Final = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
    }
)


class _Refused(Exception):
    """The broker did not take records of this transaction, for what they are."""


class ExactlyOnce:
    """Delivers turns, and commits one while the next is scored.

    A turn's transaction is opened after it is scored. The coordinator does not check who owns a
    partition when offsets come in a transaction, so what was revoked since the turn was taken is
    left out here, and nothing is polled between that check and the look at our generation. While
    the commit is under way no partition is given up: a rebalance waits for it in ``revoked``.

    librdkafka does not know KIP-890: an EndTxn that arrives late, after its client has given it
    up, ends the *next* transaction of that producer. So after any call that failed or was slow
    enough to have been repeated, the producer is made anew: that fences whatever is under way.

    Args:
        settings: the settings.
        consumer: whose turns are delivered.
        routes: where answers go.
        signature: what every answer tells of this worker.
        waiting: called between attempts while the broker is away; may raise to give up.
        largest_request: the largest record on the requests topic, in bytes.

    Raises:
        ConfigError: librdkafka refuses a property.
        Fenced: another process has the same slot.
    """

    def __init__(
        self,
        settings: Settings,
        consumer: RequestConsumer,
        routes: Routes,
        *,
        signature: Signature,
        waiting: Callable[[], None],
        largest_request: int = 0,
    ) -> None:
        self._settings = settings
        self._dead_letters = settings.topics.dead_letters
        self._results = settings.topics.results
        self._consumer = consumer
        self._routes = routes
        self._signature = signature
        self._waiting = waiting
        self._properties: dict[str, Any] = {
            **producer_properties(settings, largest_request),
            **ONLY_ERRORS,
            # One for all of the cluster: without the group, two groups would fence each other.
            "transactional.id": f"{settings.worker.group}-{settings.member_id}",
            "transaction.timeout.ms": int(TRANSACTION_TIMEOUT * 1000),
            "socket.timeout.ms": int(REQUEST_TIMEOUT * 1000),
            "error_cb": self._on_error,
            # One for all records: one each would cost as much as the rest of producing them.
            "on_delivery": self._on_delivery,
            # A connection that breaks is told in the log alone.
            "log.connection.close": True,
        }
        shown = int(self._properties["log_level"])
        self._properties |= {
            "logger": _ConnectionLog(self._on_break, shown),
            "log_level": max(shown, _CONNECTIONS),
        }
        self.counts = Counts()
        self._trouble = BrokerTrouble()
        self._suspect = False
        # When a broker comes back from a crash, sending offsets may never return, whatever its
        # timeout (librdkafka 2.16.0): the process has to start anew then, and be able to end.
        self._calls: BackgroundThread[Callable[[], None], None] = BackgroundThread(
            lambda call: call(), "transactions"
        )
        self._offsets: tuple[dict[int, int], object] | None = None
        self._under_way: Sequence[Output] = []
        self._turn = Turn([], {})
        self._give_up_at = 0.0
        self._committing: Future[None] | None = None
        self._start_error: KafkaException | None = None
        self._failure: OperationError | None = None
        self._refused: list[tuple[KafkaError, bool]] = []
        """Each with whether it was about a dead letter."""
        self._producer = self._make()

    def commit_beginnings(self, first: dict[int, int]) -> None:
        """Commit where partitions are read from of which nothing is committed yet.

        In a transaction without answers, and wait for it. The consumer's own commit would not do:
        if it was late, on a connection that broke, it would come after a turn's transaction and
        take its offsets back, so that a successor answered the turn again. A late transaction is
        fenced with its producer, and one of a member that lost its partitions by its generation.

        Where it fails it is tried again, unless the first turn of a partition commits as much.

        Raises:
            Fenced, DeliveryFailed: as for ``deliver``.
        """
        self.raise_failure()
        self.settle()
        self._start([], beginnings=first)
        try:
            self._finish([])
        except KafkaException as error:
            self.counts.aborts += 1
            self._consumer.ask_again(first)
            self._recover(error.args[0])
        else:
            self.counts.commits += 1

    def deliver(self, turn: Turn, answers: Sequence[Answer]) -> None:
        """Publish a turn's answers and its offsets, all or nothing, and begin to commit them.

        The commit ends in ``settle``; while it is under way the next turn can be scored.

        Raises:
            Fenced: another process has the same slot.
            ConsumerFailed: the consumer cannot go back.
            DeliveryFailed: the client hangs.
        """
        self.raise_failure()
        # First, since a turn that is to be read again takes what was read after it along.
        self.settle()
        # No poll until our generation is looked at: ownership is as it is now.
        part = [Output.of(answer) for answer in answers if self._is_owned(turn, answer.request)]
        if part:
            self._turn = turn
            self._start(part)
            self._under_way = part

    def settle(self) -> None:
        """Wait for the commit under way.

        Where the broker does not take a record for its size or address, the turn is delivered in
        halves, until it is clear whose record that is; it then gets a problem in its place. After
        any other failure the partitions are read again from their committed offsets.

        Raises:
            Fenced, ConsumerFailed, DeliveryFailed: as for ``deliver``.
        """
        turn = self._turn
        parts = [self._under_way] if self._under_way else []
        self._under_way = []
        while parts:
            part = parts.pop(0)
            try:
                self._finish(part)
            except _Refused:
                self.counts.aborts += 1
                # Sequence numbers that the broker refused are missed in the next transaction.
                self._renew()
                middle = len(part) // 2
                parts[:0] = [half for half in (part[:middle], part[middle:]) if half]
            except KafkaException as error:
                self.counts.aborts += 1
                self._recover(error.args[0])
                first: dict[int, int] = {}
                for output in [*part, *(output for rest in parts for output in rest)]:
                    first.setdefault(output.request.partition, output.request.offset)
                self._consumer.rewind(first)
                return
            else:
                self.counts.commits += 1
                failpoint("after_commit")
            # What went while this was under way is its new owner's.
            parts = [
                owned
                for rest in parts
                if (owned := [each for each in rest if self._is_owned(turn, each.request)])
            ]
            if parts:
                self._start(parts[0])

    def serve(self) -> None:
        """Let the client tell of its troubles, and see to a commit that has ended."""
        self.raise_failure()
        if self._committing is None or self._committing.done():
            self.settle()
            self._producer.poll(0)

    def in_flight(self) -> int:
        """Requests whose commit is under way."""
        return len(self._under_way)

    def revoked(self, partitions: Sequence[int], timeout: float) -> None:
        """Wait for the commit under way: nobody else has the partitions until we return."""
        try:
            self.settle()
        except OperationError as error:
            # This is called by the consumer's client.
            self._failure = error

    def lost(self, partitions: Sequence[int]) -> None:
        """Wait for the commit under way; the broker knows whether it still takes it."""
        self.revoked(partitions, 0)

    def abandon(self) -> int:
        """Forget the commit under way, at the very end; how many requests that was."""
        return self.in_flight()

    def raise_failure(self) -> None:
        """Raise what went wrong while partitions went, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _is_owned(self, turn: Turn, request: Request) -> bool:
        return self._consumer.still_owned(turn, request.partition)

    def _start(self, part: Sequence[Output], beginnings: dict[int, int] | None = None) -> None:
        """Publish, and begin to commit; what fails is met by ``_finish``."""
        self._give_up_at = monotonic() + TRANSACTION_TIMEOUT
        self._suspect = False
        self._refused = []
        self._start_error = self._committing = None
        try:
            self._producer.begin_transaction()
            next_offsets = beginnings or self._fill(part)
        except KafkaException as error:
            self._start_error = error
        else:
            # Our generation as it is now. If it changes before it is sent, the coordinator refuses
            # it, as it should: a static member's is checked.
            self._offsets = next_offsets, self._consumer.group_metadata()
            self._committing = self._calls.submit(self._commit_once)

    def _finish(self, part: Sequence[Output]) -> None:
        try:
            if self._start_error is not None:
                raise self._start_error
            self._until_done(self._commit, self._give_up_at)
        except KafkaException as error:
            if error.args[0].fatal():
                raise
            # A refusal is reported by the abort at the latest: until then all that may be seen
            # of it is that nothing can be produced any more.
            self._until_done(
                lambda: self._producer.abort_transaction(REQUEST_TIMEOUT),
                monotonic() + TRANSACTION_TIMEOUT,
            )
            if not self._refused:
                raise
            if len(part) == 1:
                (output,) = part
                for refusal, of_letter in self._refused:
                    mend = output.letter_refused if of_letter else output.answer_refused
                    if not mend(refusal):
                        if refusal.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                            # To read it again would end the same way, without end.
                            topic = self._dead_letters if of_letter else self._results
                            raise DeliveryFailed(right_missing(f"WRITE on topic {topic}")) from None
                        raise
            raise _Refused from None
        # Troubles of the commit itself are told here at the earliest.
        self._producer.poll(0)
        if self._suspect:
            self._renew()

    def _commit(self) -> None:
        """The attempt that is under way, then others where it has failed."""
        committing = self._committing or self._calls.submit(self._commit_once)
        self._committing = None
        deadline = monotonic() + _HANGS_AFTER
        while monotonic() < deadline:
            try:
                committing.result(_RETRY_WAIT)
            except NotYet:
                self._waiting()
            else:
                return
        raise DeliveryFailed("the client does not come back from a transaction")

    def _commit_once(self) -> None:
        """Send the offsets, if that is not done yet, and commit; in a thread of its own."""
        if self._offsets is not None:
            self._send_offsets(*self._offsets)
            self._offsets = None
            failpoint("after_send_offsets")
        self._timed(lambda: self._producer.commit_transaction(REQUEST_TIMEOUT))

    def _send_offsets(self, next_offsets: dict[int, int], metadata: object) -> None:
        topic = self._settings.topics.requests
        places = [
            TopicPartition(topic, partition, offset) for partition, offset in next_offsets.items()
        ]
        self._timed(
            lambda: self._producer.send_offsets_to_transaction(places, metadata, REQUEST_TIMEOUT)
        )

    def _fill(self, part: Sequence[Output]) -> dict[int, int]:
        """Produce; returns the next offset of each partition."""
        failpoint("after_begin")
        next_offsets: dict[int, int] = {}
        for number, output in enumerate(part):
            if number == len(part) // 2:
                failpoint("mid_produce")
            self._send_answer(output)
            if output.letter is not None:
                self._send_letter(output)
            next_offsets[output.request.partition] = output.request.offset + 1
        failpoint("after_produce")
        return next_offsets

    def _timed(self, call: Callable[[], None]) -> None:
        began = monotonic()
        try:
            call()
        finally:
            if monotonic() - began > 0.9 * REQUEST_TIMEOUT:
                self._suspect = True

    def _send_answer(self, output: Output) -> None:
        while (record := output.answer_record(self._routes, self._signature)) is not None:
            if (error := self._produce(record)) is None:
                return
            # Refused by the client before it was queued: the transaction goes on.
            if not output.answer_refused(error):
                raise KafkaException(error)

    def _send_letter(self, output: Output) -> None:
        while (record := output.letter_record(self._routes, self._dead_letters)) is not None:
            if (error := self._produce(record)) is None:
                return
            if not output.letter_refused(error):
                raise KafkaException(error)

    def _produce(self, record: Record) -> KafkaError | None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    record.partition,
                    headers=record.headers,
                )
            except BufferError:
                # Not the consumer: the transaction in hand must not lose its partitions unseen.
                self._producer.poll(_RETRY_WAIT)
                self._waiting()
            except KafkaException as error:
                refusal: KafkaError = error.args[0]
                if refusal.code() not in REFUSALS:
                    raise
                return refusal
            else:
                return None

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        # The rest of a transaction that cannot be committed is purged: not the record's fault.
        if error is not None and error.code() in REFUSALS:
            self._refused.append((error, message.topic() == self._dead_letters))

    def _until_done(self, call: Callable[[], object], deadline: float) -> None:
        # What the broker has aborted by then is not worth any more patience.
        while True:
            try:
                call()
            except KafkaException as error:
                self._suspect = True
                if not error.args[0].retriable() or monotonic() >= deadline:
                    raise
                self._waiting()
            else:
                return

    def _recover(self, error: KafkaError) -> None:
        if error.code() in _FENCED:
            raise Fenced(self._settings.member_id)
        _log.warning("a transaction failed, its requests are read again: %s", error.str())
        self._renew()

    def _renew(self) -> None:
        """Fence what may still be under way, and begin with a new producer."""
        self.counts.renewals += 1
        self._producer = self._make()

    def _make(self) -> Producer:
        try:
            producer = Producer(self._properties)
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error, self._settings.kafka) from None
        while True:
            try:
                producer.init_transactions(REQUEST_TIMEOUT)
            except KafkaException as error:
                failure: KafkaError = error.args[0]
                if failure.code() in _FENCED:
                    self._recover(failure)
                if failure.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
                    name = self._properties["transactional.id"]
                    raise DeliveryFailed(
                        right_missing(f"WRITE on transactional id {name}")
                    ) from None
                if not failure.retriable():
                    raise DeliveryFailed(f"no transactions: {failure.str()}") from None
                self._waiting()
            else:
                return producer

    def _on_error(self, error: KafkaError) -> None:
        self._suspect = True
        self._trouble(error)

    def _on_break(self) -> None:
        # What was under way on it is repeated on the next one, and may still arrive.
        self._suspect = True


class _ConnectionLog(logging.Logger):
    """Takes librdkafka's log, tells of each connection that broke, and hands on what is asked for.

    librdkafka repeats a request on a new connection without a word to ``error_cb`` (2.16.0). Its
    lines come in ``poll``.

    Args:
        broke: called for each connection that broke.
        shown: the user's ``log_level``, in syslog's numbers.
    """

    def __init__(self, broke: Callable[[], None], shown: int) -> None:
        super().__init__("librdkafka")
        self._broke = broke
        # The client's own translation of syslog's levels.
        levels = (*[logging.CRITICAL] * 3, logging.ERROR, logging.WARNING)
        lower = (logging.INFO, logging.INFO, logging.DEBUG)
        self._shown = (*levels, *lower)[min(shown, 7)]

    def log(self, level: int, msg: object, *args: object, **_: object) -> None:
        """One line; the first of ``args`` is its kind."""
        if "FAIL" in args:
            self._broke()
        if level >= self._shown:
            _log.log(level, msg, *args)
