"""How fast a backlog is worked off, by worker processes and by partitions.

The backlog is there before the workers, and none of it can be read before all of them have their
partitions: neither its producer nor anybody's start is in the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from benchmarks.case import Context
from benchmarks.contender import Contender, product
from benchmarks.scale.records import Drain
from benchmarks.topic_to_topic import TopicToTopic, Variant
from benchmarks.workload import Workload, blobs, wine

WINE: Final = "wine-onnx"
WAITING: Final = "waiting"
PARTITIONS: Final = 12

_CONFS: Final = {
    WINE: "samples/sklearn_wine/onnx/conf.yaml",
    WAITING: "benchmarks/scale/waiting.yaml",
}
_WINE: Final = partial(wine, WINE)
_BYTES: Final = partial(blobs, 480)
"""As long as a table of wines."""

_WINE_REQUESTS: Final = 200_000
_WAITING_REQUESTS: Final = 16_000
"""For each worker that has a partition: five seconds."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a backlog is worked off by."""

    model: str
    workers: int
    partitions: int
    deliveries: tuple[str, ...]
    quick: bool = False

    @property
    def name(self) -> str:
        """How it is told apart."""
        return f"{self.model}, {self.workers} workers, {self.partitions} partitions"

    def variant(self) -> Variant:
        """What is to be run."""
        workload: partial[Workload]
        if self.model == WINE:
            workload, requests = _WINE, _WINE_REQUESTS
        else:
            workload = _BYTES
            requests = _WAITING_REQUESTS * min(self.workers, self.partitions)
        contenders = tuple(map(self._contender, self.deliveries))
        return Variant(self.name, workload, requests, contenders, self.partitions, self.quick)

    def _contender(self, delivery: str) -> Contender:
        made = product(
            _CONFS[self.model],
            name=delivery,
            exactly_once=delivery == "exactly_once",
            processes=self.workers,
        )
        return replace(made, live=False, members=self.workers)


def setups() -> Iterator[Setup]:
    """Everything that is measured."""
    for_all = ("at_least_once",)
    both = (*for_all, "exactly_once")
    for workers in (1, 2, 3, 4, 6):
        quick = workers in {1, 2}
        yield Setup(WINE, workers, PARTITIONS, both if workers in {1, 2, 6} else for_all, quick)
    for partitions in (1, 2, 4, 6):
        yield Setup(WINE, 2, partitions, for_all)
    for workers in (1, 2, 3, 4, 6):
        yield Setup(WAITING, workers, PARTITIONS, for_all, workers == 6)
    for partitions in (1, 2, 4, 6):
        yield Setup(WAITING, 6, partitions, for_all, partitions == 2)


def run(context: Context, rounds: int, first_round: int, quick: bool) -> Iterator[Drain]:
    """Work off the backlog of every setup once a round, in turns.

    Raises:
        RunFailed: not every request was answered once and rightly.
    """
    named = {setup.name: setup for setup in setups()}
    case = TopicToTopic("drain", tuple(setup.variant() for setup in named.values()))
    for item in case.run(context, rounds, quick):
        setup = named[item.variant]
        yield Drain(
            model=setup.model,
            delivery=item.contender,
            workers=setup.workers,
            partitions=setup.partitions,
            round=first_round + item.round,
            answers=item.answers,
            seconds=item.seconds,
            cpu_seconds=item.cpu_seconds,
            broker_cpu_seconds=item.broker_cpu_seconds,
        )
