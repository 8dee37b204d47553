"""What a case is: something to measure, with contenders that take turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from benchmarks.environments import python_of
from benchmarks.measure import Measurement

ROOT: Final = Path(__file__).parents[1]
"""The project's folder, which every contender is started in."""

ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
"""The environment of every contender: one thread a model, whichever library computes it."""


class RunFailed(Exception):
    """A contender ended, stood still or answered wrongly: there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a case runs on.

    Attributes:
        bootstrap: the address of a real Kafka that nobody else uses.
        broker_pid: its process.
        folder: for logs and whatever else is needed only while a case runs.
    """

    bootstrap: str
    broker_pid: int
    folder: Path

    def python(self, project: str) -> Path:
        """The interpreter of the environment of ``contenders/PROJECT.txt``."""
        return python_of(project)


class Case(Protocol):
    """One thing to measure."""

    @property
    def name(self) -> str:
        """What it is called on the command line and in the table."""

    def run(self, context: Context, rounds: int, quick: bool, /) -> Iterator[Measurement]:
        """Measure every contender once a round, in turns.

        Args:
            context: what to run on.
            rounds: how often each contender is run.
            quick: with fewer requests and variants, for a first look.

        Raises:
            RunFailed: a contender could not be measured.
        """
