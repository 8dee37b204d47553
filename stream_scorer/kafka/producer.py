"""The answers' producer: every answer to its address, dead letters beside, nothing dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.kafka.clients import (
    ONLY_ERRORS,
    BrokerTrouble,
    producer_properties,
    wrong_property,
)
from stream_scorer.kafka.outputs import TOO_LARGE, Output, Record, answer_record
from stream_scorer.kafka.refusals import right_missing
from stream_scorer.kafka.routes import Routes
from stream_scorer.protocol import Answer, Signature

_FULL_QUEUE_WAIT: Final = 0.1

_ALONE_WAIT: Final = 0.1
"""Seconds to wait for an empty queue, before and after a record that is sent alone."""

_ALONE_TIME: Final = 0.5
"""Seconds after which the rest of those has to wait for its next turn."""

_UNDER_WAY: Final = KafkaError._DESTROY
"""Told of a record that was under way when its topic was deleted; sent again, it is delivered, or
refused for its address."""

Report = Callable[[KafkaError | None, Message | None], None]


class DeliveryFailed(OperationError):
    """The broker did not take an answer: its request must not be committed."""


class AnswerProducer:
    """Publishes answers and dead letters, puts others in place of what is refused, and loses none.

    Used by one thread; refusals are seen to in ``poll`` and ``flush``. With nothing in flight and
    no failure raised, all that was published is acknowledged by the broker.

    Args:
        settings: the settings.
        routes: where answers go.
        signature: what every answer tells of this worker.
        queue_full: called again and again while the queue is full; may raise to give up.
        largest_request: the largest record on the requests topic, in bytes.

    Raises:
        ConfigError: librdkafka refuses a property.
    """

    def __init__(
        self,
        settings: Settings,
        routes: Routes,
        *,
        signature: Signature,
        queue_full: Callable[[], None],
        largest_request: int = 0,
    ) -> None:
        self._dead_letters = settings.topics.dead_letters
        self._routes = routes
        self._signature = signature
        self._queue_full = queue_full
        self._again: deque[Callable[[], None]] = deque()
        self._alone: deque[Callable[[], None]] = deque()
        self._sending_again = False
        self._wait_for_room = True
        self._failure: str | None = None
        properties = producer_properties(settings, largest_request) | ONLY_ERRORS
        try:
            self._producer = Producer(properties | {"error_cb": BrokerTrouble()})
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error, settings.kafka) from None

    def publish(self, answer: Answer) -> None:
        """Queue an answer and, where its status says so, a dead letter; waits while it is full."""
        if answer.is_dead_letter:
            output = Output.of(answer)
            self._send_letter(output)
            self._send_answer(output)
        else:
            # PERF: nearly all. What may be refused of it is looked at when it is.
            record = answer_record(answer, self._routes, self._signature)
            self._produce(record, partial(self._refused, answer))

    def poll(self) -> None:
        """Serve delivery reports without waiting.

        Raises:
            DeliveryFailed: the broker did not take an answer and never will.
        """
        self._producer.poll(0)
        self._settle()

    def flush(self, timeout: float, *, wait_for_room: bool = True) -> int:
        """Send what is queued at once, whatever ``linger.ms`` is, and wait for delivery reports.

        Args:
            timeout: seconds; below 0.001 nothing is sent.
            wait_for_room: whether ``queue_full`` may be called, for what is sent again.

        Returns:
            How many records are not delivered yet.

        Raises:
            DeliveryFailed: as for ``poll``.
        """
        self._producer.flush(timeout)
        self._wait_for_room = wait_for_room
        try:
            self._settle()
        finally:
            self._wait_for_room = True
        return self.in_flight()

    def in_flight(self) -> int:
        """How many records are not delivered yet."""
        return len(self._producer) + len(self._again) + len(self._alone)

    def abandon(self) -> int:
        """Forget what is not delivered, at the very end; how many records that was."""
        left = self.in_flight()
        self._producer.purge()
        return left

    def _settle(self) -> None:
        self._send_again()
        if self._failure is not None:
            raise DeliveryFailed(self._failure)

    def _send_again(self) -> None:
        # With an empty queue there is room, and what has to be alone is. An item leaves its list
        # when it is queued: until then it must count as in flight, whatever happens.
        if self._sending_again or len(self._producer) > 0:
            return
        self._sending_again = True
        try:
            while self._again:
                self._again[0]()
                self._again.popleft()
            until = monotonic() + _ALONE_TIME
            while self._alone and monotonic() < until and self._producer.flush(_ALONE_WAIT) == 0:
                self._alone[0]()
                self._alone.popleft()
                self._producer.flush(_ALONE_WAIT)
        except BufferError:
            pass  # the next time
        finally:
            self._sending_again = False

    def _send_answer(self, output: Output, *, alone: bool = False) -> None:
        record = output.answer_record(self._routes, self._signature)
        if record is not None:
            self._produce(record, partial(self._answer_refused, output, alone))

    def _send_letter(self, output: Output, *, alone: bool = False) -> None:
        record = output.letter_record(self._routes, self._dead_letters)
        if record is not None:
            self._produce(record, partial(self._letter_refused, output, alone))

    def _refused(self, answer: Answer, error: KafkaError, message: Message | None) -> None:
        self._answer_refused(Output.of(answer), False, error, message)

    # A delivery report is no place to wait for room in the queue: what has to be sent again is
    # put aside. A batch that the broker refuses for its size may hold small records, so each of
    # them is sent once more by itself.

    def _answer_refused(
        self, output: Output, alone: bool, error: KafkaError, message: Message | None
    ) -> None:
        if message is not None and not alone and error.code() in TOO_LARGE:
            self._alone.append(partial(self._send_answer, output, alone=True))
            return
        if error.code() == _UNDER_WAY:
            self._again.append(partial(self._send_answer, output))
            return
        had_letter = output.letter is not None
        if not output.answer_refused(error):
            self._fail(error, message)
            return
        self._again.append(partial(self._send_answer, output))
        if not had_letter:
            self._again.append(partial(self._send_letter, output))

    def _letter_refused(
        self, output: Output, alone: bool, error: KafkaError, message: Message | None
    ) -> None:
        if message is not None and not alone and error.code() in TOO_LARGE:
            self._alone.append(partial(self._send_letter, output, alone=True))
        elif error.code() == _UNDER_WAY or output.letter_refused(error):
            self._again.append(partial(self._send_letter, output))
        else:
            self._fail(error, message)

    def _fail(self, error: KafkaError, message: Message | None) -> None:
        self._failure = f"an answer could not be delivered: {error.str()}"
        if message is not None and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self._failure = right_missing(f"WRITE on topic {message.topic()}")

    def _produce(self, record: Record, report: Report) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    record.partition,
                    on_delivery=report,
                    headers=record.headers,
                )
            except BufferError:
                if not self._wait_for_room:
                    raise
                self._producer.poll(_FULL_QUEUE_WAIT)
                self._queue_full()
            except KafkaException as error:
                # Refused by the client, before it was queued: as if the broker had said so.
                report(error.args[0], None)
                return
            else:
                return
