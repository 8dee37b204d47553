"""What one request leads to on topics: its answer, perhaps a dead letter, and their substitutes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, cast

from confluent_kafka import KafkaError

from stream_scorer.kafka.dead_letters import dead_letter_headers
from stream_scorer.kafka.routes import Routes
from stream_scorer.protocol import Answer, Request, Signature, Status, problem

_log = logging.getLogger(__name__)

Headers = list[tuple[str, str | bytes | None]]

MAX_ECHO_BYTES: Final = 4096
"""The largest key and correlation id that come back on an answer which had to be cut down."""

TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE})
"""Errors that are about a size: a record's, or that of the batch it was sent in."""

_NO_SUCH_ADDRESS: Final = frozenset(
    {
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
    }
)

REFUSALS: Final = TOO_LARGE | _NO_SUCH_ADDRESS
"""Errors that are about the record, not about the broker."""


class Record(NamedTuple):
    """A record to produce."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def answer_record(answer: Answer, routes: Routes, signature: Signature) -> Record:
    """An answer to its address."""
    request = answer.request
    topic, partition = routes.address(request)
    headers = cast("Headers", answer.headers(signature))
    return Record(topic, partition, request.key, answer.body, headers)


@dataclass(slots=True)
class Output:
    """A request's answer and dead letter, as they stand after what the broker refused of them.

    ``answer`` and ``letter`` are ``None`` where there is none, or none can be had any more.
    """

    request: Request
    answer: Answer | None
    letter: Answer | None
    trace: bool = True
    cut_down: bool = False

    @classmethod
    def of(cls, answer: Answer) -> Output:
        """What an answer leads to."""
        return cls(answer.request, answer, answer if answer.is_dead_letter else None)

    def answer_record(self, routes: Routes, signature: Signature) -> Record | None:
        """The answer to its address."""
        return None if self.answer is None else answer_record(self.answer, routes, signature)

    def letter_record(self, routes: Routes, topic: str) -> Record | None:
        """The dead letter to its topic."""
        if self.letter is None:
            return None
        request = self.request
        headers: Headers = [*dead_letter_headers(self.letter, trace=self.trace)]
        partition = routes.beside(request, topic)
        return Record(topic, partition, request.key, request.payload, headers)

    def answer_refused(self, error: KafkaError) -> bool:
        """Put a problem in the answer's place, where that can help against the error."""
        answer = self.answer
        if answer is None:
            return False
        request = answer.request
        if error.code() in TOO_LARGE and self.cut_down:
            _log.error("request %s: no answer is small enough for its topic", request.id)
            self.answer = None
            return True
        if error.code() in TOO_LARGE:
            # What comes back from the request goes too: it may be what is too large.
            request = replace(
                request,
                key=_within(request.key, MAX_ECHO_BYTES),
                correlation_id=_within(request.correlation_id, MAX_ECHO_BYTES),
                passed_through=(),
            )
            self.cut_down = True
            status, detail = Status.MODEL_ERROR, "the answer is too large for its topic"
        elif error.code() in _NO_SUCH_ADDRESS and request.reply_topic is not None:
            detail = f"the answer cannot be sent to topic {request.reply_topic!r}"
            request = replace(request, reply_topic=None, reply_partition=None)
            status = Status.INVALID_REQUEST
        else:
            return False
        _log.warning("request %s: %s (%s)", request.id, detail, error.str())
        self.answer = replace(
            problem(request, status, detail), stages=answer.stages, queue=answer.queue
        )
        if self.letter is None:
            self.letter = replace(self.answer, request=self.request)
        return True

    def letter_refused(self, error: KafkaError) -> bool:
        """Leave the trace out, where that can help: the record is not to be lost for it."""
        if error.code() not in TOO_LARGE:
            return False
        if self.trace:
            self.trace = False
        else:
            _log.error("request %s: too large for the dead-letter topic", self.request.id)
            self.letter = None
        return True


def _within(value: bytes | None, size: int) -> bytes | None:
    return value if value is not None and len(value) <= size else None
