"""How long decode, predict and encode take by the size of the batch, and which size is enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Final, Literal, NamedTuple

from stream_scorer.protocol import Request, Status
from stream_scorer.scorer import Scorer

BUDGET: Final = 8.0
"""Seconds after which no larger batch is begun."""

ENOUGH: Final = 0.9
"""The part of the most requests/s that the suggested batch must reach."""

_STEADY: Final = 0.3
_FEWEST: Final = 3


class Stages:
    """Keeps how long each stage of the last call took; a scorer's ``Observer``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def stage(self, name: Literal["decode", "predict", "encode"], seconds: float) -> None:
        """Keep it."""
        self.seconds[name] = seconds

    def batch(self, size: int) -> None:
        """What is measured knows its size."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What a batch takes, in seconds: the median of several."""

    batch: int
    decode: float
    predict: float
    encode: float
    total: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.batch / self.total


class _Call(NamedTuple):
    decode: float
    predict: float
    encode: float
    total: float


def batch_sizes(largest: int) -> list[int]:
    """1, 2, 4, … and the largest."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest]


def measure(
    scorer: Scorer, stages: Stages, request: Request, sizes: Sequence[int]
) -> Iterator[Timing]:
    """Score one request in batches of several sizes; ends early where the next would take too long.

    Args:
        scorer: told to tell ``stages``; its own ``max_batch_size`` is at least the largest size.
        stages: the scorer's observer.
        request: one whose answer is a result.
        sizes: those of the batches, growing.

    Returns:
        A timing for each size. Fewer, where a batch took so long that a larger one would exceed
        ``BUDGET``, or did not end in results.
    """
    ends = perf_counter() + BUDGET
    for size in sizes:
        calls = _calls(scorer, stages, [request] * size, ends)
        if not calls:
            return
        timing = Timing(size, *(median(stage) for stage in zip(*calls, strict=True)))
        yield timing
        if perf_counter() + 2 * timing.total * (_FEWEST + 1) > ends:
            return


def _calls(scorer: Scorer, stages: Stages, requests: Sequence[Request], ends: float) -> list[_Call]:
    """Several calls, at least one; none where an answer is not a result."""
    calls: list[_Call] = []
    steady = perf_counter() + _STEADY
    while len(calls) <= _FEWEST or perf_counter() < steady:
        call = _call(scorer, stages, requests)
        if call is None:
            return []
        calls.append(call)
        if len(calls) > 1 and perf_counter() > ends:
            break
    # What is done once for a new size (buffers, traces of a network) is not what it costs.
    return calls[1:]


def _call(scorer: Scorer, stages: Stages, requests: Sequence[Request]) -> _Call | None:
    began = perf_counter()
    answers = scorer.score(requests)
    total = perf_counter() - began
    if any(answer.status is not Status.OK for answer in answers):
        return None
    took = stages.seconds
    return _Call(took["decode"], took["predict"], took["encode"], total)


def knee(timings: Sequence[Timing]) -> Timing:
    """The smallest batch with at least ``ENOUGH`` of the most requests/s; needs one timing."""
    most = max(timing.rate for timing in timings)
    return next(timing for timing in timings if timing.rate >= ENOUGH * most)
