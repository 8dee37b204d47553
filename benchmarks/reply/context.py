"""What a case is given to run in, and what a case is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.measure import Measurement


class Context(Protocol):
    """Where a case runs: a real Kafka, room for files, and the contenders' interpreters."""

    @property
    def bootstrap(self) -> str:
        """The broker's ``host:port``."""

    @property
    def broker_pid(self) -> int:
        """The broker's process."""

    @property
    def folder(self) -> Path:
        """A folder for logs and whatever else is needed only while the case runs."""

    def python(self, project: str, /) -> Path:
        """The interpreter of the virtual environment of ``contenders/PROJECT.txt``."""


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the suite.

    Attributes:
        name: as in the table.
        run: gives each measurement once it is made; takes the context, the number of rounds, and
            whether the quick form is wanted.
    """

    name: str
    run: Callable[[Context, int, bool], Iterator[Measurement]]
