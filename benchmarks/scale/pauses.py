"""What callers see when workers come and go: pauses and latencies, from answers and their times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple


class Seen(NamedTuple):
    """An answer: its request's number, its partition, and when it could be read, in seconds."""

    number: int
    partition: int
    at: float


def pauses(seen: Iterable[Seen], start: float, end: float) -> dict[int, float]:
    """For each partition, the longest time between two answers in a row.

    Args:
        seen: answers in the order in which they were read.
        start: seconds; a pause counts when it ends after that
        end: and begins before that.

    Returns:
        Seconds by partition; 0 where no pause of a partition counts.
    """
    times: dict[int, list[float]] = {}
    for answer in seen:
        times.setdefault(answer.partition, []).append(answer.at)
    return {partition: longest(times[partition], start, end) for partition in sorted(times)}


def longest(times: Iterable[float], start: float, end: float) -> float:
    """The longest step from a time to the next, ending after ``start``, begun before ``end``."""
    return max((b - a for a, b in pairwise(times) if b > start and a < end), default=0.0)


def latencies(sent: Sequence[float], seen: Iterable[Seen], start: float, end: float) -> list[float]:
    """Seconds to the first answer, of the requests sent from ``start`` to ``end``.

    Args:
        sent: when each request was sent, by its number.
        seen: answers.
        start: seconds.
        end: seconds.

    Returns:
        Infinity for a request without an answer.
    """
    first: dict[int, float] = {}
    for answer in seen:
        first[answer.number] = min(first.get(answer.number, math.inf), answer.at)
    return [first.get(number, math.inf) - at for number, at in enumerate(sent) if start <= at < end]


def answered_again(sent: Sequence[float], seen: Iterable[Seen], since: float) -> dict[int, float]:
    """Seconds until each partition answered a request that was sent after ``since``."""
    again: dict[int, float] = {}
    for answer in seen:
        if sent[answer.number] >= since:
            again.setdefault(answer.partition, answer.at - since)
    return again
