"""What one run of one contender came to, and what its processes used."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contender in one round of one case.

    Attributes:
        case: what was asked of it, as in the table: ``wine-onnx``.
        contender: who: ``floor``, ``product``, ``product exactly-once``.
        variant: what was varied within the case, ``""`` where nothing was: ``64 callers``.
        round: from 0; contenders take turns within a round.
        answers: how many answers were right in count, correlation and value.
        seconds: from the first request that could be taken to the last answer.
        cpu_seconds: of the contender's processes in that time.
        broker_cpu_seconds: of the broker in that time.
        peak_mb: the contender's largest resident size, its processes together, in MB (10^6 bytes).
        latencies_ms: percentiles by their number (50, 95, 99), where latency was measured.
    """

    case: str
    contender: str
    variant: str
    round: int
    answers: int
    seconds: float
    cpu_seconds: float
    broker_cpu_seconds: float
    peak_mb: float
    latencies_ms: dict[int, float]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that stands by itself.

    Attributes:
        name: what it is of.
        value: the figure.
        unit: ``MB`` (10^6 bytes), ``s``, ``MB/min``, or what it is a part of.
        target: what it is to be: at most that, or at least where ``more_is_better``; ``None``
            where nothing is asked of it.
        more_is_better: which way the target is.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    more_is_better: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.more_is_better else self.value <= self.target


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes have used so far."""

    cpu_seconds: float
    peak_mb: float


def usage(pids: Iterable[int]) -> Usage:
    """CPU time and peak resident size of running processes and all their descendants, by /proc."""
    cpu, peak = 0.0, 0.0
    for pid in _with_descendants(pids):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        # The name may hold spaces: fields are counted from its closing bracket.
        fields = stat.rpartition(")")[2].split()
        cpu += (int(fields[11]) + int(fields[12])) / _TICKS
        peak += next(
            (int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if "VmHWM" in line),
            0.0,
        )
    return Usage(cpu, peak)


def percentiles(latencies_ms: Sequence[float]) -> dict[int, float]:
    """The 50th, 95th and 99th percentile, by nearest rank; empty where nothing was measured."""
    ordered = sorted(latencies_ms)
    return {
        number: ordered[max(0, math.ceil(len(ordered) * number / 100) - 1)]
        for number in (50, 95, 99)
        if ordered
    }


def _with_descendants(pids: Iterable[int]) -> list[int]:
    found = list(pids)
    for pid in found:  # grows while it is walked
        children = Path(f"/proc/{pid}/task/{pid}/children")
        # Of the main thread only: no process measured here forks from another.
        if children.exists():
            found += map(int, children.read_text(encoding="ascii").split())
    return found
