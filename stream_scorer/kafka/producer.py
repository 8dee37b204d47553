"""The answers' producer: every answer to its address, dead letters beside, nothing dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.kafka.clients import BrokerTrouble, producer_properties, wrong_property
from stream_scorer.kafka.dead_letters import dead_letter_headers
from stream_scorer.kafka.routes import Address, Routes
from stream_scorer.protocol import Answer, Status, problem

_log = logging.getLogger(__name__)

MAX_ECHO_BYTES: Final = 4096
"""The largest key and correlation id that come back on an answer which had to be cut down."""

_FULL_QUEUE_WAIT: Final = 0.1

_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE})
_NO_SUCH_ADDRESS: Final = frozenset(
    {
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
    }
)


Headers = list[tuple[str, str | bytes | None]]
Report = Callable[[KafkaError | None, Message | None], None]


class DeliveryFailed(OperationError):
    """The broker did not take an answer: its request must not be committed."""


@dataclass(slots=True)
class _Pending:
    """A request's answer and the records still owed for it: the answer, perhaps a dead letter."""

    answer: Answer
    owed: int
    cut_down: bool = False


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
        self._results = settings.topics.results
        self._routes = routes
        self._model = model.encode()
        self._delivered = delivered
        self._queue_full = queue_full
        self._again: list[Callable[[], None]] = []
        self._failure: KafkaError | None = None
        properties = producer_properties(settings, largest_request)
        try:
            self._producer = Producer(properties | {"error_cb": BrokerTrouble()})
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error) from None

    def publish(self, answer: Answer) -> None:
        """Queue an answer and, where its status says so, a dead letter; waits while it is full."""
        pending = _Pending(answer, owed=1)
        if answer.is_dead_letter:
            pending.owed = 2
            self._send_dead_letter(pending, answer, trace=True)
        self._send_answer(pending)
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
        while self._again:
            retries, self._again = self._again, []
            for retry in retries:
                retry()

    def _send_answer(self, pending: _Pending) -> None:
        answer = pending.answer

        def report(error: KafkaError | None, _: Message | None) -> None:
            if error is None:
                self._finish(pending)
            else:
                self._answer_refused(pending, error)

        request = answer.request
        address = self._routes.address(request)
        headers: Headers = [*answer.headers(self._model)]
        self._produce(address, request.key, answer.body, headers, report)

    def _answer_refused(self, pending: _Pending, error: KafkaError) -> None:
        answer = pending.answer
        request = answer.request
        if error.code() in _TOO_LARGE and not pending.cut_down:
            # What comes back from the request goes too: it may be what is too large.
            small = replace(
                request,
                key=_within(request.key, MAX_ECHO_BYTES),
                correlation_id=_within(request.correlation_id, MAX_ECHO_BYTES),
                passed_through=[],
            )
            detail = "the answer is too large for its topic"
            substitute = problem(small, Status.MODEL_ERROR, detail)
            pending.cut_down = True
        elif error.code() in _NO_SUCH_ADDRESS and request.reply_topic is not None:
            astray = replace(request, reply_topic=None, reply_partition=None)
            detail = f"the answer cannot be sent to topic {request.reply_topic!r}"
            substitute = problem(astray, Status.INVALID_REQUEST, detail)
        elif error.code() in _TOO_LARGE:
            _log.error("request %s: no answer is small enough for its topic", request.id)
            self._finish(pending)
            return
        else:
            self._failure = error
            return
        _log.warning("request %s: %s (%s)", request.id, detail, error.str())
        self._again.append(lambda: self._substitute(pending, substitute))

    def _substitute(self, pending: _Pending, substitute: Answer) -> None:
        if not pending.answer.is_dead_letter:
            pending.owed += 1
            kept = replace(substitute, request=pending.answer.request)
            self._send_dead_letter(pending, kept, trace=True)
        pending.answer = substitute
        self._send_answer(pending)

    def _send_dead_letter(self, pending: _Pending, answer: Answer, *, trace: bool) -> None:
        request = answer.request

        def report(error: KafkaError | None, _: Message | None) -> None:
            if error is None:
                self._finish(pending)
            elif error.code() not in _TOO_LARGE:
                self._failure = error
            elif trace:
                # The trace may be what is too large; the record is not to be lost for it.
                self._again.append(lambda: self._send_dead_letter(pending, answer, trace=False))
            else:
                _log.error("request %s: too large for %s", request.id, self._dead_letters)
                self._finish(pending)

        address = self._routes.beside(request, self._dead_letters)
        headers: Headers = [*dead_letter_headers(answer, trace=trace)]
        self._produce(address, request.key, request.payload, headers, report)

    def _finish(self, pending: _Pending) -> None:
        pending.owed -= 1
        if pending.owed == 0:
            request = pending.answer.request
            self._delivered(request.partition, request.offset)

    def _produce(
        self,
        address: Address,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        report: Report,
    ) -> None:
        while True:
            try:
                self._producer.produce(
                    address.topic,
                    value,
                    key,
                    address.partition,
                    on_delivery=report,
                    headers=headers,
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


def _within(value: bytes | None, size: int) -> bytes | None:
    return value if value is not None and len(value) <= size else None
