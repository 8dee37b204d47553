"""The answers' producer: every answer to its address, dead letters beside, nothing dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.kafka.clients import BrokerTrouble, producer_properties, wrong_property
from stream_scorer.kafka.outputs import TOO_LARGE, Output, Record
from stream_scorer.kafka.routes import Routes
from stream_scorer.protocol import Answer

_FULL_QUEUE_WAIT: Final = 0.1

_ALONE_WAIT: Final = 1.0
"""Seconds to wait for an empty queue, before and after a record that is sent alone."""

Report = Callable[[KafkaError | None, Message | None], None]


class DeliveryFailed(OperationError):
    """The broker did not take an answer: its request must not be committed."""


@dataclass(slots=True)
class _Pending:
    """What a request led to, and how many of its records are still owed."""

    output: Output
    owed: int


class _Send(Protocol):
    def __call__(self, pending: _Pending, *, alone: bool) -> None: ...


class AnswerProducer:
    """Publishes answers and dead letters, and says when all of a request's records are delivered.

    Used by one thread; delivery reports are served in ``poll`` and ``flush``.

    Args:
        settings: the settings.
        routes: where answers go.
        model: the ``model`` header of every answer.
        delivered: called with a request's partition and offset once everything it led to is
            acknowledged by the broker.
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
        model: str,
        delivered: Callable[[int, int], None],
        queue_full: Callable[[], None],
        largest_request: int = 0,
    ) -> None:
        self._dead_letters = settings.topics.dead_letters
        self._routes = routes
        self._model = model.encode()
        self._delivered = delivered
        self._queue_full = queue_full
        self._again: list[Callable[[], None]] = []
        self._alone: deque[Callable[[], None]] = deque()
        self._retrying = False
        self._failure: KafkaError | None = None
        properties = producer_properties(settings, largest_request)
        try:
            self._producer = Producer(properties | {"error_cb": BrokerTrouble()})
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error) from None

    def publish(self, answer: Answer) -> None:
        """Queue an answer and, where its status says so, a dead letter; waits while it is full."""
        # One more is owed until both are queued: the first may be delivered before the second is.
        pending = _Pending(Output.of(answer), owed=1)
        self._send_letter(pending)
        self._send_answer(pending)
        self._finish(pending)
        self._retry()

    def poll(self) -> None:
        """Serve delivery reports without waiting.

        Raises:
            DeliveryFailed: the broker did not take an answer and never will.
        """
        self._producer.poll(0)
        self._settle()

    def flush(self, timeout: float) -> int:
        """Send what is queued at once, whatever ``linger.ms`` is, and wait for delivery reports.

        Args:
            timeout: seconds; below 0.001 nothing is sent.

        Returns:
            How many records are not delivered yet.

        Raises:
            DeliveryFailed: as for ``poll``.
        """
        self._producer.flush(timeout)
        self._settle()
        return len(self._producer)

    def abandon(self) -> int:
        """Forget what is not delivered, at the very end; how many records that was."""
        left = len(self._producer)
        self._producer.purge()
        return left

    def _settle(self) -> None:
        self._retry()
        if self._failure is not None:
            raise DeliveryFailed(f"an answer could not be delivered: {self._failure.str()}")

    def _retry(self) -> None:
        # Not within itself: a full queue is waited for by what serves reports too.
        if self._retrying:
            return
        self._retrying = True
        try:
            while self._again:
                retries, self._again = self._again, []
                for retry in retries:
                    retry()
            while self._alone and self._producer.flush(_ALONE_WAIT) == 0:
                self._alone.popleft()()
                self._producer.flush(_ALONE_WAIT)
        finally:
            self._retrying = False

    def _send_answer(self, pending: _Pending, *, alone: bool = False) -> None:
        output = pending.output

        def report(error: KafkaError | None, message: Message | None) -> None:
            if error is None:
                self._finish(pending)
                return
            if message is not None and not alone and error.code() in TOO_LARGE:
                self._send_alone(pending, self._send_answer)
                return
            had_letter = output.letter is not None
            if not output.answer_refused(error):
                self._failure = error
                return
            # Not here: a delivery report is no place to wait for room in the queue.
            self._again.append(lambda: self._send_answer(pending))
            self._again.append(lambda: self._finish(pending))
            if not had_letter:
                self._again.append(lambda: self._send_letter(pending))

        if (record := output.answer_record(self._routes, self._model)) is not None:
            self._produce(pending, record, report)

    def _send_letter(self, pending: _Pending, *, alone: bool = False) -> None:
        output = pending.output

        def report(error: KafkaError | None, message: Message | None) -> None:
            if error is None:
                self._finish(pending)
            elif message is not None and not alone and error.code() in TOO_LARGE:
                self._send_alone(pending, self._send_letter)
            elif output.letter_refused(error):
                self._again.append(lambda: self._send_letter(pending))
                self._again.append(lambda: self._finish(pending))
            else:
                self._failure = error

        if (record := output.letter_record(self._routes, self._dead_letters)) is not None:
            self._produce(pending, record, report)

    def _send_alone(self, pending: _Pending, send: _Send) -> None:
        """Have a record sent again by itself: the broker refuses whole batches for their size."""

        def again() -> None:
            send(pending, alone=True)
            self._finish(pending)

        self._alone.append(again)

    def _finish(self, pending: _Pending) -> None:
        pending.owed -= 1
        if pending.owed == 0:
            request = pending.output.request
            self._delivered(request.partition, request.offset)

    def _produce(self, pending: _Pending, record: Record, report: Report) -> None:
        pending.owed += 1
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
                self._producer.poll(_FULL_QUEUE_WAIT)
                self._queue_full()
            except KafkaException as error:
                # Refused by the client, before it was queued: as if the broker had said so.
                report(error.args[0], None)
                return
            else:
                return
