"""What was measured, as one JSON object a line: an interrupted run keeps what it had."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

import orjson


@dataclass(frozen=True, slots=True)
class Drain:
    """A backlog, worked off by all workers at once.

    Attributes:
        model: what was asked: ``wine-onnx``, ``waiting``.
        delivery: ``worker.delivery``.
        workers: processes.
        partitions: of both topics.
        round: from 0.
        answers: how many.
        seconds: from the first answer's append to the last one's.
        cpu_seconds: of the workers in that time.
        broker_cpu_seconds: of the broker in that time.
    """

    model: str
    delivery: str
    workers: int
    partitions: int
    round: int
    answers: int
    seconds: float
    cpu_seconds: float
    broker_cpu_seconds: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


@dataclass(frozen=True, slots=True)
class Change:
    """A worker that came or went under a steady load, or a while in which none did.

    Attributes:
        delivery: ``worker.delivery``.
        protocol: how the group is led.
        round: from 0.
        before: workers before it.
        after: workers after it.
        settled_seconds: from the start or SIGTERM of the worker until the partitions were shared
            out again.
        pauses_ms: for each partition, the longest time between two answers.
        silence_ms: the longest time between two answers of any partition.
        latencies_ms: percentiles by their number, 100 being the longest, of the requests sent in
            the first seconds of it, as many for each change.
        doubled: answers beyond the first to a request, since the change before.
    """

    delivery: str
    protocol: str
    round: int
    before: int
    after: int
    settled_seconds: float
    pauses_ms: list[float]
    silence_ms: float
    latencies_ms: dict[int, float]
    doubled: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that was killed under a steady load.

    Attributes:
        delivery: ``worker.delivery``.
        protocol: how the group is led.
        replaced: whether another was started at once under the same name, by a supervisor.
        round: from 0.
        workers: before it.
        seconds: until every partition had answered a request that was sent after the kill.
        pauses_ms: for each partition, the longest time between two answers.
        longest_ms: how long the slowest answer took.
        requests: how many there were in all.
        lost: those never answered.
        doubled: answers beyond the first to a request.
    """

    delivery: str
    protocol: str
    replaced: bool
    round: int
    workers: int
    seconds: float
    pauses_ms: list[float]
    longest_ms: float
    requests: int
    lost: int
    doubled: int


Record = Drain | Change | Loss
_Kind = TypeVar("_Kind", Drain, Change, Loss)
_KINDS: Final = {kind.__name__: kind for kind in (Drain, Change, Loss)}


def append(path: Path, record: Record) -> None:
    """Add a record to a file."""
    line = orjson.dumps(
        {"kind": type(record).__name__, **asdict(record)}, option=orjson.OPT_NON_STR_KEYS
    )
    with path.open("ab") as file:
        file.write(line + b"\n")


def read(path: Path) -> list[Record]:
    """The records of a file; none where there is no file."""
    if not path.exists():
        return []
    return [_record(orjson.loads(line)) for line in path.read_bytes().splitlines()]


def of(kind: type[_Kind], records: Iterable[Record]) -> list[_Kind]:
    """Those of one kind."""
    return [record for record in records if isinstance(record, kind)]


def next_round(kind: type[Record], records: Iterable[Record]) -> int:
    """The number of a round of this kind that is none of these records'."""
    return max((record.round + 1 for record in records if isinstance(record, kind)), default=0)


def _record(fields: dict[str, object]) -> Record:
    kind = _KINDS[str(fields.pop("kind"))]
    latencies = fields.get("latencies_ms")
    if isinstance(latencies, dict):
        fields["latencies_ms"] = {int(number): value for number, value in latencies.items()}
    return kind(**fields)  # type: ignore[arg-type]
