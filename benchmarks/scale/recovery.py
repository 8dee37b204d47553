"""How long it takes until everything is answered again after a worker was killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Final

from benchmarks.case import Context, RunFailed
from benchmarks.scale.crew import PARTITIONS, Crew, Mode, crew
from benchmarks.scale.pauses import answered_again, latencies, pauses
from benchmarks.scale.records import Loss
from benchmarks.workload import Workload, wine

WORKERS: Final = 3
_BEFORE: Final = 3.0
_AFTER: Final = 2.0
_TIMEOUT: Final = 180.0
_LOOK_EVERY: Final = 1.0
"""Seconds; a look takes time from the load, and its result is not of the time of the look."""

_FINISH: Final = 60.0


def run(
    context: Context, modes: Sequence[Mode], rounds: int, first_round: int, quick: bool
) -> Iterator[Loss]:
    """Kill one of three workers, in each mode once a round; replaced at once, and not.

    Raises:
        RunFailed: an answer was wrong, or a partition stayed unanswered.
    """
    workload = wine("wine-onnx")
    for number in range(first_round, first_round + rounds):
        for mode in modes:
            # Nobody hears by a heartbeat that a worker was killed.
            if mode.heartbeat_ms or (quick and mode.protocol == "consumer"):
                continue
            for replaced in (False, True):
                yield _loss(context, mode, workload, replaced, number)


def _loss(context: Context, mode: Mode, workload: Workload, replaced: bool, number: int) -> Loss:
    with crew(context, mode, workload, WORKERS, supervised=replaced) as workers:
        workers.wait(_BEFORE)
        killed = time.monotonic()
        _kill_one(workers, replaced)
        again = _wait_for_all(workers, killed)
        workers.settle(WORKERS if replaced else WORKERS - 1)
        workers.wait(_AFTER)
        ended = time.monotonic()
        lost = workers.load.finish(_FINISH)
    load = workers.load
    return Loss(
        delivery=mode.delivery,
        protocol=mode.group,
        replaced=replaced,
        round=number,
        workers=WORKERS,
        seconds=max(again.values()),
        pauses_ms=[1000 * each for each in pauses(load.seen, killed, ended).values()],
        # What was lost has none; it is counted.
        longest_ms=1000 * max(filter(isfinite, latencies(load.sent, load.seen, killed, ended))),
        requests=len(load.sent),
        lost=lost,
        doubled=load.doubled,
    )


def _kill_one(workers: Crew, supervised: bool) -> None:
    if supervised:
        (supervisor,) = workers.workers
        os.kill(supervisor.children()[0], signal.SIGKILL)
    else:
        workers.workers.pop(0).kill()


def _wait_for_all(workers: Crew, since: float) -> dict[int, float]:
    """Wait until each partition has answered a request sent after that; how long each took."""
    load, begin = workers.load, len(workers.load.seen)
    while len(again := answered_again(load.sent, load.seen[begin:], since)) < PARTITIONS:
        if time.monotonic() > since + _TIMEOUT:
            raise RunFailed(
                f"{workers.mode.name}: {PARTITIONS - len(again)} partitions stand still"
            )
        workers.wait(_LOOK_EVERY)
    return again
