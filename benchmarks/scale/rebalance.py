"""What callers see while workers are added and taken away, one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from benchmarks.case import Context, RunFailed
from benchmarks.measure import percentiles
from benchmarks.scale.crew import Crew, Mode, crew
from benchmarks.scale.pauses import latencies, longest, pauses
from benchmarks.scale.records import Change
from benchmarks.workload import wine

MOST: Final = 6
INTERVAL: Final = 6.0
"""Seconds from a change over which latencies are taken, and from its end to the next change.

The last of its pauses is over by then, and so is what was sent in it answered.
"""

_QUICK_MOST: Final = 2
_LINGERING: Final = 2
"""How many are taken away where each time a session has to end."""

_FINISH: Final = 60.0

_Window = tuple[int, int, float, float, float, int]
"""Workers before and after; when the change began, was over, and the next began; doubled."""


def run(
    context: Context, modes: Sequence[Mode], rounds: int, first_round: int, quick: bool
) -> Iterator[Change]:
    """Take the workers from one to the most and back, in each mode once a round.

    Raises:
        RunFailed: an answer was wrong or missing, or a worker ended.
    """
    workload = wine("wine-onnx")
    most = _QUICK_MOST if quick else MOST
    for number in range(first_round, first_round + rounds):
        for mode in modes:
            if quick and (mode.lingers or mode.heartbeat_ms):
                continue
            with crew(context, mode, workload, 1) as workers:
                windows = list(_windows(workers, most))
                if lost := workers.load.finish(_FINISH):
                    raise RunFailed(f"{mode.name}: {lost} requests were not answered")
            for window in windows:
                yield _change(workers, mode, number, window)


def _windows(workers: Crew, most: int) -> Iterator[_Window]:
    def nothing() -> None:
        """What it is like in between."""

    def add() -> None:
        workers.add()

    def remove() -> None:
        # Out of the list first: it is meant to end.
        workers.workers.pop().stop()

    changes: list[tuple[int, int, Callable[[], None]]] = [(1, 1, nothing)]
    changes += [(count, count + 1, add) for count in range(1, most)]
    least = most - _LINGERING if workers.mode.lingers else 1
    changes += [(count, count - 1, remove) for count in range(most, least, -1)]
    for before, after, change in changes:
        doubled = workers.load.doubled
        began = time.monotonic()
        change()
        workers.settle(after)
        over = time.monotonic()
        workers.wait(INTERVAL)
        yield before, after, began, over, time.monotonic(), workers.load.doubled - doubled


def _change(workers: Crew, mode: Mode, number: int, window: _Window) -> Change:
    before, after, began, over, ended, doubled = window
    load = workers.load
    waited = [1000 * each for each in latencies(load.sent, load.seen, began, began + INTERVAL)]
    return Change(
        delivery=mode.delivery,
        protocol=mode.group,
        round=number,
        before=before,
        after=after,
        settled_seconds=over - began,
        pauses_ms=[1000 * each for each in pauses(load.seen, began, ended).values()],
        silence_ms=1000 * longest((answer.at for answer in load.seen), began, ended),
        latencies_ms={**percentiles(waited), 100: max(waited)},
        doubled=doubled,
    )
