"""The answers of a run: all read back, every one verified, and timed by the broker's clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from benchmarks.case import RunFailed
from benchmarks.topics import WARM_UP
from benchmarks.workload import Headers

_Headers = list[tuple[str, bytes | None]]  # of a consumed message: the type allows more
_STALL: Final = 10.0
_SHOWN: Final = 3


class Answer(NamedTuple):
    """A record of the results topic; ``appended`` is the broker's clock, in ms."""

    correlation: bytes
    body: bytes
    headers: Headers
    appended: int


class WrongAnswers(RunFailed):
    """Some requests were answered wrongly, twice or not at all."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many requests were answered, and in what time.

    Attributes:
        answers: how many.
        seconds: in what time.
    """

    answers: int
    seconds: float


def verify(
    answers: Iterable[Answer],
    count: int,
    right: Callable[[int, bytes, Headers], bool],
    began: int | None = None,
) -> Verdict:
    """Check that each of ``count`` requests is answered once, and rightly.

    The time runs to the last answer's arrival at the broker. It runs from the first answer's where
    the requests were there before the contender: what that takes to start, to import and to join
    its group is not in it. It runs from the first request where the contender was there before
    them. Whoever answers in the order of asking is timed alike in both ways.

    Args:
        answers: those of the run; the correlation of each is its request's number.
        count: how many requests there were.
        right: whether an answer is right, by number, body and headers.
        began: when the first request was sent, in ms, where it was sent during the run.

    Raises:
        WrongAnswers: anything else is there, or is missing.
    """
    seen = bytearray(count)
    faults: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}

    def fault(kind: str, what: str) -> None:
        faults[kind] += 1
        if faults[kind] <= _SHOWN:
            examples.setdefault(kind, []).append(what)

    first, last = None, 0
    for answer in answers:
        if answer.correlation == WARM_UP:
            continue
        name = answer.correlation.decode(errors="replace")
        first = answer.appended if first is None else min(first, answer.appended)
        last = max(last, answer.appended)
        number = int(answer.correlation) if answer.correlation.isdigit() else count
        if number >= count:
            fault("to no request", name)
        elif seen[number]:
            fault("doubled", name)
        else:
            seen[number] = 1
            if not right(number, answer.body, answer.headers):
                fault("wrong", f"{name} ({answer.body[:80]!r})")
    for number in range(count):
        if not seen[number]:
            fault("missing", str(number))
    if faults or first is None:
        said = (f"{n} {kind}, such as {', '.join(examples[kind])}" for kind, n in faults.items())
        raise WrongAnswers(f"of {count} answers " + "; ".join(said))
    # Records of one append share a millisecond; a run in less than one cannot be timed.
    return Verdict(count, max(last - (began or first), 1) / 1000)


def read_answers(bootstrap: str, topic: str, partitions: int) -> Iterator[Answer]:
    """Everything committed on a topic that is no longer written to.

    Raises:
        RunFailed: the broker stopped answering.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": topic,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "message.max.bytes": 2_000_000,
        }
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    at_end: set[int | None] = set()
    try:
        while len(at_end) < partitions:
            # The end of a partition comes as a message too, so that this never waits in full.
            message = consumer.poll(_STALL)
            if message is None:
                raise RunFailed(f"topic {topic} cannot be read to its end")
            error = message.error()
            if error is None:
                yield answer_of(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                at_end.add(message.partition())
            else:
                raise KafkaException(error)
    finally:
        consumer.close()


def answer_of(message: Message) -> Answer:
    """What a record of the results topic says."""
    headers = {name: value or b"" for name, value in cast(_Headers, message.headers() or ())}
    # Of a contender that has no such header the key comes back.
    correlation = headers.get("correlation-id") or _bytes(message.key())
    return Answer(correlation, _bytes(message.value()), headers, message.timestamp()[1])


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""
