"""What a contender is told to do: one JSON object, its only argument."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Job:
    """Score everything on one topic to another, until told to stop by SIGTERM.

    Attributes:
        bootstrap: the broker.
        requests: the topic to take from, its partitions as many as those of ``results``.
        results: the topic to answer on, with the request's ``correlation-id`` header.
        group: the consumer group.
        model: the model's name in ``benchmarks.models``.
        batch: the most requests the model gets at once.
        exactly_once: answers and offsets in one transaction, instead of one after the other.
    """

    bootstrap: str
    requests: str
    results: str
    group: str
    model: str
    batch: int = 512
    exactly_once: bool = False

    def text(self) -> str:
        """The job as a program's argument."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def of(cls, text: str) -> Job:
        """The job of a program's argument."""
        return cls(**orjson.loads(text))
