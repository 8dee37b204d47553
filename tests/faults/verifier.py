"""Whether a run kept its promise: what was lost, duplicated, wrong, extra, out of order.

The verifier knows the wire contract and the formula ``3 n + 1``, and nothing of the product.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from tests.faults.stream import Place
from tests.numbers_plugin import expected
from tests.wire import Record, record_of

TIMEOUT = 30.0
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """One record of the results topic; ``request`` is the place that its header names."""

    partition: int
    offset: int
    number: int
    request: Place
    status: str
    body: bytes
    key: bytes
    giver: str
    """The worker process that gave it."""


class AnswerReader(threading.Thread):
    """Reads a topic from offset 0 on, and goes on reading while brokers and workers die."""

    def __init__(self, bootstrap: str, topic: str, isolation: str) -> None:
        super().__init__(name=f"reader, {isolation}", daemon=True)
        self._topic = topic
        self.answers: list[Answer] = []
        self.numbers: set[int] = set()
        self.first_seen: dict[str, float] = {}
        self.last_seen: dict[str, float] = {}
        """When the first and the latest answer of a worker process could be read."""
        self.backwards = 0
        """Records that came at an offset which was passed already."""
        self.failure: BaseException | None = None
        self._ends: dict[int, int] = {}
        self._ended = threading.Event()
        self._consumer = _consumer(bootstrap, isolation)
        self._partitions = partitions_of(self._consumer, topic)

    def run(self) -> None:
        try:
            self._consumer.assign(
                [TopicPartition(self._topic, number, 0) for number in self._partitions]
            )
            while not self._ended.is_set():
                first = self._consumer.poll(0.05)
                if first is not None:
                    for message in [first, *self._consumer.consume(10_000, 0)]:
                        error = message.error()
                        if error is None:
                            self._take(answer_of(record_of(message)))
                        elif error.code() == KafkaError._PARTITION_EOF:
                            partition, offset = message.partition(), message.offset()
                            assert partition is not None
                            assert offset is not None
                            self._ends[partition] = offset
                        elif error.fatal():
                            raise KafkaException(error)
        except BaseException as error:  # noqa: BLE001 - shown by whoever waits for this thread
            self.failure = error
        finally:
            self._consumer.close()

    def wait_for(self, what: str, there: Callable[[], bool], timeout: float) -> None:
        """Wait until ``there()``; fails when this reader does, or when it takes too long."""
        deadline = time.monotonic() + timeout
        while not there():
            if self.failure is not None:
                raise self.failure
            assert time.monotonic() < deadline, (
                f"no {what} within {timeout:.0f} s; {len(self.numbers)} answered"
            )
            time.sleep(0.02)

    def read_up_to(self, ends: Mapping[int, int]) -> None:
        """Go on until every partition was read up to its end, then stop."""
        try:
            self.wait_for(
                "end of the topic",
                lambda: all(self._ends.get(p, 0) >= end for p, end in ends.items()),
                2 * TIMEOUT,
            )
        finally:
            self.end()

    def end(self) -> None:
        self._ended.set()
        self.join()

    def _take(self, answer: Answer) -> None:
        now = time.time()
        self.first_seen.setdefault(answer.giver, now)
        self.last_seen[answer.giver] = now
        if answer.offset < self._ends.get(-1 - answer.partition, 0):
            self.backwards += 1
        self._ends[-1 - answer.partition] = answer.offset + 1
        self.answers.append(answer)
        self.numbers.add(answer.number)


def answer_of(record: Record) -> Answer:
    """What a record of the results topic says; a record that is no answer of ours is an error."""
    _, partition, offset = record.header("request").rsplit("/", 2)
    return Answer(
        record.partition,
        record.offset,
        int(record.correlation_id),
        Place(int(partition), int(offset)),
        record.status,
        record.value or b"",
        record.key or b"",
        record.header("model").partition(";")[0].rstrip("/").rpartition("/")[2],
    )


@dataclass(slots=True)
class Verdict:
    """What a run came to. ``failures`` are the broken promises, none where it is well."""

    delivery: str
    requests: int
    answers: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    extra: int = 0
    out_of_order: int = 0
    dead_letters: int = 0
    aborted: int = 0
    """Records that only a reader of uncommitted ones sees."""
    behind: int = 0
    """Requests at the end of the run that no committed offset has passed."""
    hanging: int = 0
    """Partitions that an open transaction still holds back."""
    disagreed: int = 0
    """Answers that one of the two committed readers saw and the other did not."""
    duplicates_allowed: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Each promise that was broken, with its count."""
        counts = {
            "lost": self.lost,
            "duplicated": max(0, self.duplicated - self.duplicates_allowed),
            "wrong": self.wrong,
            "extra": self.extra,
            "out of order": self.out_of_order,
            "dead letters": self.dead_letters,
            "behind": self.behind,
            "hanging": self.hanging,
            "disagreed": self.disagreed,
        }
        return [f"{name}: {count}" for name, count in counts.items() if count]

    @property
    def line(self) -> str:
        allowed = f" (bound {self.duplicates_allowed})" if self.duplicates_allowed else ""
        return (
            f"{self.delivery}: {self.requests} requests, {self.answers} answers, lost {self.lost},"
            f" duplicated {self.duplicated}{allowed}, wrong {self.wrong}, extra {self.extra},"
            f" out of order {self.out_of_order}, dead letters {self.dead_letters},"
            f" behind {self.behind}, hanging {self.hanging}, readers disagree {self.disagreed},"
            f" aborted {self.aborted}" + "".join(f"; {note}" for note in self.notes)
        )


def judge(verdict: Verdict, places: Mapping[int, Place], answers: Sequence[Answer]) -> None:
    """Count what is wrong with the answers to the requests at ``places``, in reading order."""
    verdict.answers = len(answers)
    times = Counter(answer.number for answer in answers)
    verdict.lost = sum(number not in times for number in places)
    verdict.duplicated = sum(count - 1 for number, count in times.items() if number in places)
    verdict.extra = sum(count for number, count in times.items() if number not in places)
    verdict.wrong = sum(is_wrong(answer, places) for answer in answers if answer.number in places)
    verdict.out_of_order = out_of_order(answers)
    if verdict.delivery == "exactly_once":
        verdict.notes += [
            "twice: " + ", ".join(f"{a.request} at {a.offset} by {a.giver}" for a in again)
            for number in [number for number, count in times.items() if count > 1][:EXAMPLES]
            if (again := [a for a in answers if a.number == number])
        ]


def is_wrong(answer: Answer, places: Mapping[int, Place]) -> bool:
    return (
        answer.status != "ok"
        or answer.body != expected(answer.number)
        or answer.key != str(answer.number).encode()
        or answer.request != places[answer.number]
        # The topics have as many partitions, so an answer stands where its request does.
        or answer.partition != answer.request.partition
    )


def out_of_order(answers: Sequence[Answer]) -> int:
    """How many requests were first answered after a later one of their partition."""
    latest: dict[int, int] = {}
    seen: set[Place] = set()
    late = 0
    for answer in answers:
        if answer.request in seen:
            continue
        seen.add(answer.request)
        partition, offset = answer.request.partition, answer.request.offset
        late += offset < latest.get(partition, -1)
        latest[partition] = max(offset, latest.get(partition, -1))
    return late


class Cluster:
    """What a broker says of a run's topics and group."""

    def __init__(self, bootstrap: str, group: str) -> None:
        self._group = group
        self._admin = AdminClient(_common(bootstrap))
        self._readers = {
            isolation: _consumer(bootstrap, isolation)
            for isolation in ("read_committed", "read_uncommitted")
        }

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def ends(self, topic: str, isolation: str) -> dict[int, int]:
        """The end of each partition, for a reader of that isolation."""
        reader = self._readers[isolation]
        return {
            number: reader.get_watermark_offsets(TopicPartition(topic, number), TIMEOUT)[1]
            for number in partitions_of(reader, topic)
        }

    def behind(self, topic: str) -> int:
        """How many requests no committed offset of the group has passed."""
        ends = self.ends(topic, "read_uncommitted")
        places = [TopicPartition(topic, number) for number in ends]
        asked = self._admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(self._group, places)], require_stable=True
        )
        found = asked[self._group].result(TIMEOUT).topic_partitions or []
        committed = {place.partition: max(0, place.offset) for place in found}
        return sum(abs(end - committed.get(number, 0)) for number, end in ends.items())

    def members(self) -> int:
        """How many members the group has; 0 while it rebalances."""
        asked = self._admin.describe_consumer_groups([self._group], request_timeout=TIMEOUT)
        group = asked[self._group].result(TIMEOUT)
        return len(group.members) if group.state is ConsumerGroupState.STABLE else 0

    def hanging(self, topic: str) -> int:
        """How many partitions an open transaction holds back, 30 s at most after the run."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            every = self.ends(topic, "read_uncommitted")
            stable = self.ends(topic, "read_committed")
            held = sum(stable[number] != end for number, end in every.items())
            if not held or time.monotonic() > deadline:
                return held
            time.sleep(0.2)


def verify(
    bootstrap: str,
    cluster: Cluster,
    names: Mapping[str, str],
    running: AnswerReader,
    verdict: Verdict,
    places: Mapping[int, Place],
) -> None:
    """Judge a run whose workers have ended.

    Args:
        bootstrap: the broker's address.
        cluster: the broker's own view.
        names: the topics' names by their kind.
        running: the reader of committed answers that ran beside the faults; ended here.
        verdict: where to count.
        places: the acknowledged requests.
    """
    verdict.hanging = cluster.hanging(names["results"]) + cluster.hanging(names["dead_letters"])
    verdict.behind = cluster.behind(names["requests"])
    # An open transaction shows as `hanging`, and what it holds back can be read by nobody.
    stable = cluster.ends(names["results"], "read_committed")
    running.read_up_to(stable)
    fresh = _read(bootstrap, names["results"], "read_committed", stable)
    every = _read(
        bootstrap,
        names["results"],
        "read_uncommitted",
        cluster.ends(names["results"], "read_uncommitted"),
    )
    letters = cluster.ends(names["dead_letters"], "read_uncommitted")
    verdict.dead_letters = sum(letters.values())
    verdict.aborted = len(every) - len(fresh)
    verdict.disagreed = len(set(running.answers) ^ set(fresh)) + running.backwards
    judge(verdict, places, fresh)
    # What was never committed may be a part of the truth, but no other truth.
    committed = set(fresh)
    verdict.wrong += sum(
        answer.number not in places or is_wrong(answer, places)
        for answer in every
        if answer not in committed
    )


def partitions_of(consumer: Consumer, topic: str) -> list[int]:
    return sorted(consumer.list_topics(topic, timeout=TIMEOUT).topics[topic].partitions)


def _read(bootstrap: str, topic: str, isolation: str, ends: Mapping[int, int]) -> list[Answer]:
    reader = AnswerReader(bootstrap, topic, isolation)
    reader.start()
    reader.read_up_to(ends)
    return reader.answers


def _consumer(bootstrap: str, isolation: str) -> Consumer:
    return Consumer(
        {
            **_common(bootstrap),
            "group.id": f"verifier-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": isolation,
            "fetch.wait.max.ms": 10,
        }
    )


def _common(bootstrap: str) -> dict[str, str | int | float | bool]:
    return {"bootstrap.servers": bootstrap, "reconnect.backoff.max.ms": 1000, "log_level": 0}
