"""The tables of docs/scale.md, from records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Final, TypeVar

from benchmarks.report import machine, markdown
from benchmarks.scale.drain import PARTITIONS, WAITING, WINE
from benchmarks.scale.records import Change, Drain, Loss, Record, of

_MARK: Final = re.compile(r"(<!-- table: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SHARED: Final = {WINE: 2, WAITING: 6}
"""By model, the workers that share the partitions where those are varied."""

_PAUSED_MS: Final = 1_000.0


_Item = TypeVar("_Item")
_Key = TypeVar("_Key")


class UnknownTable(ValueError):
    """A document asks for a table that there is not."""


def render(document: str, records: Sequence[Record]) -> str:
    """A document with its tables made anew; those that nothing was measured for stay as they are.

    Raises:
        UnknownTable: it asks for another one.
    """

    def made(mark: re.Match[str]) -> str:
        if mark[2] not in TABLES:
            raise UnknownTable(f"no table {mark[2]}; there are: {', '.join(TABLES)}")
        text = TABLES[mark[2]](records)
        if not text:
            return mark[0]
        if picture := PICTURES.get(mark[2]):
            name = picture.removesuffix(".png").replace("-", " ").capitalize()
            text += f"\n![{name}]({picture})\n"
        return f"{mark[1]}\n{text}\n{mark[3]}"

    return _MARK.sub(made, document)


def by_workers(records: Sequence[Record]) -> str:
    """Rates by worker processes."""
    drains = [item for item in of(Drain, records) if item.partitions == PARTITIONS]
    groups = _grouped(drains, lambda item: (item.model, item.delivery, item.workers))
    lines = [
        [model, delivery, f"{workers}", *_drained(items, groups.get((model, delivery, 1), []))]
        for (model, delivery, workers), items in sorted(groups.items())
    ]
    head = ("model", "delivery", "workers", *_DRAINED, "of one worker's")
    return markdown(head, lines) if lines else ""


def by_partitions(records: Sequence[Record]) -> str:
    """Rates by partitions, the same workers sharing them."""
    drains = [item for item in of(Drain, records) if item.delivery == "at_least_once"]
    drains = [item for item in drains if item.workers == _SHARED[item.model]]
    groups = _grouped(drains, lambda item: (item.model, item.workers, item.partitions))
    lines = [
        [
            *(model, f"{workers}", f"{partitions}"),
            *_drained(items, groups.get((model, workers, PARTITIONS), [])),
        ]
        for (model, workers, partitions), items in sorted(groups.items())
    ]
    head = ("model", "workers", "partitions", *_DRAINED, f"of that with {PARTITIONS}")
    return markdown(head, lines) if lines else ""


def changes(records: Sequence[Record]) -> str:
    """Pauses and latencies when workers come and go."""
    groups = _grouped(of(Change, records), lambda item: (item.delivery, item.protocol, _kind(item)))
    lines = [
        [
            *(delivery, protocol, kind, f"{len(items)}"),
            _with_range([item.settled_seconds for item in items], 1),
            _with_range([median(item.pauses_ms) for item in items]),
            _with_range([max(item.pauses_ms) for item in items]),
            _with_range([item.silence_ms for item in items]),
            f"{median(item.latencies_ms[99] for item in items):,.0f}",
            _with_range([item.latencies_ms[100] for item in items]),
            f"{sum(item.doubled for item in items)}",
        ]
        for (delivery, protocol, kind), items in groups.items()
    ]
    head = (
        *("delivery", "protocol", "change", "times", "shared out after s"),
        *("pause of a partition ms", "longest of the 12 ms", "no answer at all ms"),
        *("p99 ms", "slowest ms", "answered twice"),
    )
    return markdown(head, lines) if lines else ""


def losses(records: Sequence[Record]) -> str:
    """How long it takes to recover from a worker that was killed."""
    groups = _grouped(of(Loss, records), lambda item: (item.delivery, item.protocol, item.replaced))
    lines = [
        [
            *(delivery, protocol, "yes" if replaced else "no", f"{len(items)}"),
            _with_range([item.seconds for item in items], 1),
            _with_range([sum(ms > _PAUSED_MS for ms in item.pauses_ms) for item in items]),
            _with_range([median(item.pauses_ms) for item in items]),
            _with_range([item.longest_ms / 1000 for item in items], 1),
            f"{sum(item.lost for item in items)}",
            _with_range([item.doubled for item in items]),
        ]
        for (delivery, protocol, replaced), items in groups.items()
    ]
    head = (
        *("delivery", "protocol", "replaced", "times", "all answered again after s"),
        *("partitions paused over 1 s", "median pause ms", "slowest answer s"),
        *("lost", "answered twice"),
    )
    return markdown(head, lines) if lines else ""


def measured_on(records: Sequence[Record]) -> str:
    """The machine that this runs on."""
    if not records:
        return ""
    return ", ".join(f"{name} {value}" for name, value in machine().items()) + "\n"


TABLES: Final[Mapping[str, Callable[[Sequence[Record]], str]]] = {
    "workers": by_workers,
    "partitions": by_partitions,
    "changes": changes,
    "losses": losses,
    "machine": measured_on,
}
"""What a document can ask for, by the name in its marks."""

PICTURES: Final[Mapping[str, str]] = {
    "workers": "throughput-by-workers.png",
    "changes": "pauses-by-workers.png",
}
"""The picture that goes with a table, in the document's folder."""

_DRAINED: Final = ("rounds", "requests/s", "CPU ms a request", "broker's CPU ms")


def ratios(items: Iterable[Drain], base: Iterable[Drain]) -> list[float]:
    """How many times as fast as the base, in each round that has both."""
    rates = {item.round: item.rate for item in base}
    return [item.rate / rates[item.round] for item in items if item.round in rates]


def _drained(items: Sequence[Drain], base: Sequence[Drain]) -> list[str]:
    return [
        f"{len(items)}",
        _with_range([item.rate for item in items]),
        f"{median(1000 * item.cpu_seconds / item.answers for item in items):.4f}",
        f"{median(1000 * item.broker_cpu_seconds / item.answers for item in items):.4f}",
        _with_range(ratios(items, base), 2),
    ]


def _kind(change: Change) -> str:
    return {0: "none", 1: "one more", -1: "one less"}[change.after - change.before]


def _with_range(values: Sequence[float], places: int = 0) -> str:
    """The median, and the least and the largest where they differ from it."""
    if not values:
        return ""
    told = [f"{value:,.{places}f}" for value in (median(values), min(values), max(values))]
    return told[0] if len(set(told)) == 1 else f"{told[0]} ({told[1]} to {told[2]})"


def _grouped(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
