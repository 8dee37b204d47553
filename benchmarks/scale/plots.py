"""Pictures for docs/scale.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.plots import draw
from benchmarks.scale.drain import PARTITIONS
from benchmarks.scale.records import Change, Drain, Record, of
from benchmarks.scale.report import PICTURES, ratios


def plot(folder: Path, records: Sequence[Record]) -> None:
    """Write the pictures that the records hold something for, as PNG."""
    _by_workers(of(Drain, records), folder / PICTURES["workers"])
    _by_change(of(Change, records), folder / PICTURES["changes"])


def _by_workers(drains: Sequence[Drain], path: Path) -> None:
    """The rate over that of one worker, over the workers that share the partitions."""
    rounds: dict[tuple[str, int], list[Drain]] = {}
    for item in drains:
        if item.partitions == PARTITIONS:
            rounds.setdefault((f"{item.model}, {item.delivery}", item.workers), []).append(item)
    lines: dict[str, list[tuple[int, float]]] = {}
    for (name, workers), items in rounds.items():
        if times := ratios(items, rounds.get((name, 1), [])):
            lines.setdefault(name, []).append((workers, median(times)))
    draw(lines, path, "workers", "times as fast as one worker", {}, logarithmic="")


def _by_change(changes: Sequence[Change], path: Path) -> None:
    """The longest pause of any partition, over the workers that there are after the change."""
    longest: dict[tuple[str, int], list[float]] = {}
    for item in changes:
        if item.before != item.after:
            kind = "one more" if item.after > item.before else "one less"
            name = f"{item.delivery}, {item.protocol}, {kind}"
            longest.setdefault((name, item.after), []).append(max(item.pauses_ms))
    lines: dict[str, list[tuple[int, float]]] = {}
    for (name, workers), values in longest.items():
        lines.setdefault(name, []).append((workers, median(values)))
    dotted = {name: ":" for name in lines if name.endswith("less")}
    draw(lines, path, "workers after the change", "ms", dotted, logarithmic="y")
