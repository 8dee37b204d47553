"""Exactly once: the answers, dead letters and offsets of a turn in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
from stream_scorer.kafka.consumer import RequestConsumer, Turn
from stream_scorer.kafka.counts import Counts
from stream_scorer.kafka.outputs import REFUSALS, Output, Record
from stream_scorer.kafka.producer import DeliveryFailed
from stream_scorer.kafka.routes import Routes
from stream_scorer.protocol import Answer

_log = logging.getLogger(__name__)

TRANSACTION_TIMEOUT: Final = 15.0
"""Seconds until the broker aborts a transaction that nobody ends."""

REQUEST_TIMEOUT: Final = 10.0
"""Seconds until the client gives up a request to a broker, whatever it asked for."""

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


class Fenced(OperationError):
    """Another process took over under the same ``worker.instance_id`` and slot."""


class _Refused(Exception):
    """The broker did not take records of this transaction, for what they are."""


class ExactlyOnce:
    """Delivers turns; between two of them nothing is in flight.

    A turn's transaction is opened after it is scored. The coordinator does not check who owns a
    partition when offsets come in a transaction, so what was revoked since the turn was taken is
    left out here, and nothing is polled between that check and the commit.

    librdkafka does not know KIP-890: an EndTxn that arrives late, after its client has given it
    up, ends the *next* transaction of that producer. So after any call that failed or was slow
    enough to have been repeated, the producer is made anew: that fences whatever is under way.

    Args:
        settings: the settings.
        consumer: whose turns are delivered.
        routes: where answers go.
        model: the ``model`` header of every answer.
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
        model: str,
        waiting: Callable[[], None],
        largest_request: int = 0,
    ) -> None:
        self._settings = settings
        self._dead_letters = settings.topics.dead_letters
        self._consumer = consumer
        self._routes = routes
        self._model = model.encode()
        self._waiting = waiting
        self._properties: dict[str, Any] = {
            **producer_properties(settings, largest_request),
            **ONLY_ERRORS,
            # One for all of the cluster: without the group, two groups would fence each other.
            "transactional.id": f"{settings.worker.group}-{settings.member_id}",
            "transaction.timeout.ms": int(TRANSACTION_TIMEOUT * 1000),
            "socket.timeout.ms": int(REQUEST_TIMEOUT * 1000),
            "error_cb": self._on_error,
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
        # When a broker comes back from a crash, this call may never return, whatever its timeout
        # (librdkafka 2.16.1): then the process has to start anew, and must be able to end.
        self._offsets: BackgroundThread[Callable[[], None], None] = BackgroundThread(
            lambda call: call(), "offsets"
        )
        self._refused: list[Callable[[], bool]] = []
        self._producer = self._make()

    def deliver(self, turn: Turn, answers: Sequence[Answer]) -> None:
        """Publish a turn's answers and commit its offsets, all or nothing.

        Where the broker does not take a record for its size or address, the turn is delivered in
        halves, until it is clear whose record that is; it then gets a problem in its place. After
        any other failure the partitions are read again from their committed offsets.

        Raises:
            Fenced: another process has the same slot.
            ConsumerFailed: the consumer cannot go back.
            DeliveryFailed: the client hangs.
        """
        # No poll from here to the commit: ownership is as it is now.
        parts = [
            [Output.of(a) for a in answers if self._consumer.still_owned(turn, a.request.partition)]
        ]
        while parts:
            part = parts.pop(0)
            if not part:
                continue
            try:
                self._transact(part)
            except _Refused:
                self.counts.aborts += 1
                # Sequence numbers that the broker refused are missed in the next transaction.
                self._renew()
                if len(part) > 1:
                    middle = len(part) // 2
                    parts[:0] = [part[:middle], part[middle:]]
                else:
                    parts.insert(0, part)
                continue
            except KafkaException as error:
                self.counts.aborts += 1
                self._recover(error.args[0])
                first: dict[int, int] = {}
                for output in [*part, *(output for rest in parts for output in rest)]:
                    first.setdefault(output.request.partition, output.request.offset)
                self._consumer.rewind(first)
                return
            self.counts.commits += 1
            failpoint("after_commit")

    def serve(self) -> None:
        """Let the client tell of its troubles."""
        self._producer.poll(0)

    def in_flight(self) -> int:
        """Between two turns there is none."""
        return 0

    def revoked(self, partitions: Sequence[int], timeout: float) -> None:
        """Nothing is in flight: the turn in hand will leave them out."""

    def lost(self, partitions: Sequence[int]) -> None:
        """Nothing is in flight: the turn in hand will leave them out."""

    def abandon(self) -> int:
        """Nothing is in flight."""
        return 0

    def _transact(self, part: Sequence[Output]) -> None:
        began = monotonic()
        self._suspect = False
        self._refused = []
        self._producer.begin_transaction()
        failpoint("after_begin")
        try:
            self._fill(part)
            self._until_done(lambda: self._producer.commit_transaction(REQUEST_TIMEOUT))
        except KafkaException as error:
            if error.args[0].fatal():
                raise
            # A refusal is reported by the abort at the latest: until then all that may be seen
            # of it is that nothing can be produced any more.
            self._until_done(lambda: self._producer.abort_transaction(REQUEST_TIMEOUT))
            if not self._refused:
                raise
            if len(part) == 1:
                for mend in self._refused:
                    if not mend():
                        raise
            raise _Refused from None
        # Troubles of the commit itself are told here at the earliest.
        self._producer.poll(0)
        if self._suspect or monotonic() - began > 0.9 * REQUEST_TIMEOUT:
            self._renew()

    def _fill(self, part: Sequence[Output]) -> None:
        next_offsets: dict[int, int] = {}
        for number, output in enumerate(part):
            if number == len(part) // 2:
                failpoint("mid_produce")
            self._send_answer(output)
            self._send_letter(output)
            next_offsets[output.request.partition] = output.request.offset + 1
        failpoint("after_produce")
        self._until_done(lambda: self._send_offsets(next_offsets))
        failpoint("after_send_offsets")

    def _send_offsets(self, next_offsets: dict[int, int]) -> None:
        topic = self._settings.topics.requests
        places = [
            TopicPartition(topic, partition, offset) for partition, offset in next_offsets.items()
        ]
        producer, metadata = self._producer, self._consumer.group_metadata()
        sending = self._offsets.submit(
            lambda: producer.send_offsets_to_transaction(places, metadata, REQUEST_TIMEOUT)
        )
        try:
            sending.result(TRANSACTION_TIMEOUT)
        except NotYet:
            raise DeliveryFailed("the client does not come back from sending offsets") from None

    def _send_answer(self, output: Output) -> None:
        while (record := output.answer_record(self._routes, self._model)) is not None:
            if (error := self._produce(record, output.answer_refused)) is None:
                return
            # Refused by the client before it was queued: the transaction goes on.
            if not output.answer_refused(error):
                raise KafkaException(error)

    def _send_letter(self, output: Output) -> None:
        while (record := output.letter_record(self._routes, self._dead_letters)) is not None:
            if (error := self._produce(record, output.letter_refused)) is None:
                return
            if not output.letter_refused(error):
                raise KafkaException(error)

    def _produce(self, record: Record, refused: Callable[[KafkaError], bool]) -> KafkaError | None:
        def report(error: KafkaError | None, _: Message) -> None:
            # The rest of a transaction that cannot be committed is purged: not the record's fault.
            if error is not None and error.code() in REFUSALS:
                self._refused.append(lambda: refused(error))

        while True:
            try:
                self._producer.produce(
                    record.address.topic,
                    record.value,
                    record.key,
                    record.address.partition,
                    on_delivery=report,
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

    def _until_done(self, call: Callable[[], object]) -> None:
        # What the broker has aborted by then is not worth any more patience.
        deadline = monotonic() + TRANSACTION_TIMEOUT
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
            raise Fenced(
                f"another process took over as {self._settings.member_id!r}; if it is not our "
                "successor, worker.instance_id is the same on two hosts"
            )
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
            raise wrong_property(error) from None
        while True:
            try:
                producer.init_transactions(REQUEST_TIMEOUT)
            except KafkaException as error:
                failure: KafkaError = error.args[0]
                if failure.code() in _FENCED:
                    self._recover(failure)
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
