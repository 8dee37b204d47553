"""Measurements as a table and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final, TypeVar

import orjson

from benchmarks.measure import Figure, Measurement

BASE: Final = "floor"
"""The contender that the others are compared with, where it takes part."""

OURS: Final = ("product", "product exactly-once")
"""The contenders that are compared with every other one."""

_HEAD: Final = (
    *("case", "variant", "contender", "requests/s", "of the floor"),
    *("CPU s per 1,000", "broker's CPU s per 1,000", "p50 ms", "p95 ms", "p99 ms", "peak MB"),
)
_Name = TypeVar("_Name", str, tuple[str, str])

_WORDS: Final = frozenset(
    {"case", "variant", "contender", "compared with", "figure", "unit", "target", "met"}
    | {"model", "delivery", "protocol", "change", "replaced"}
)


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one variant of a case: medians over the rounds.

    Attributes:
        case: the case.
        variant: what was varied.
        contender: who.
        rate: requests a second.
        ratio: the rate over the base's, round by round, as the median; ``None`` without a base.
        cpu: CPU seconds of the contender for 1,000 requests.
        broker_cpu: those of the broker.
        peak_mb: resident size.
        latencies_ms: by percentile, where measured.
    """

    case: str
    variant: str
    contender: str
    rate: float
    ratio: float | None
    cpu: float
    broker_cpu: float
    peak_mb: float
    latencies_ms: dict[int, float]


def summarize(measurements: Sequence[Measurement]) -> list[Row]:
    """A row for each contender of each variant, in the order they first appear."""
    return [
        Row(
            case,
            variant,
            contender,
            rate=median(item.rate for item in items),
            ratio=ratio(items, _base(measurements, case, variant)),
            cpu=median(1000 * item.cpu_seconds / item.answers for item in items),
            broker_cpu=median(1000 * item.broker_cpu_seconds / item.answers for item in items),
            peak_mb=median(item.peak_mb for item in items),
            latencies_ms={
                number: median(item.latencies_ms[number] for item in items)
                for number in items[0].latencies_ms
            },
        )
        for (case, variant, contender), items in _groups(measurements).items()
    ]


def ratio(ours: Iterable[Measurement], theirs: Iterable[Measurement]) -> float | None:
    """How many times as fast: the median over the rounds in which both took part.

    Rounds are compared with themselves, since the machine is not the same in each.
    """
    rates = {item.round: item.rate for item in theirs}
    ratios = [item.rate / rates[item.round] for item in ours if item.round in rates]
    return median(ratios) if ratios else None


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    return markdown(_HEAD, map(_cells, rows))


def comparisons(measurements: Sequence[Measurement]) -> str:
    """How many times as fast as each other contender the product is, as Markdown."""
    groups = _groups(measurements)
    lines = [
        [case, variant, ours, theirs, f"{compared:.3g}"]
        for (case, variant, ours), items in groups.items()
        if ours in OURS
        for (other_case, other_variant, theirs), others in groups.items()
        if (other_case, other_variant) == (case, variant) and theirs != ours
        if (compared := ratio(items, others)) is not None
    ]
    return markdown(("case", "variant", "contender", "compared with", "times as fast"), lines)


def figures_table(figures: Iterable[Figure]) -> str:
    """Figures that stand by themselves, as Markdown; empty where there are none."""
    lines = [
        [
            item.name,
            f"{item.value:.3g}",
            item.unit,
            ""
            if item.target is None
            else f"{'at least' if item.more_is_better else 'at most'} {item.target:g}",
            {None: "", True: "yes", False: "no"}[item.met],
        ]
        for item in figures
    ]
    return markdown(("figure", "value", "unit", "target", "met"), lines) if lines else ""


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table with its columns aligned, for terminals: words to the left, figures to the right."""
    cells = [head, *lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [name in _WORDS for name in head]
    rows = [
        "| "
        + " | ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, words, strict=True)
        )
        + " |"
        for line in cells
    ]
    rule = [
        "-" * (width + 1) + ("-" if word else ":")
        for width, word in zip(widths, words, strict=True)
    ]
    return "\n".join([rows[0], f"|{'|'.join(rule)}|", *rows[1:]]) + "\n"


def write(
    folder: Path, measurements: Sequence[Measurement], figures: Sequence[Figure] = ()
) -> None:
    """Write ``results.json``, with every round, and ``results.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine(),
        "measurements": [asdict(item) for item in measurements],
        "figures": [asdict(item) for item in figures],
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    (folder / "results.json").write_bytes(orjson.dumps(document, option=options))
    told = ", ".join(f"{name} {value}" for name, value in machine().items())
    tables = (
        table(summarize(measurements)) if measurements else "",
        comparisons(measurements) if len(_groups(measurements)) > 1 else "",
        figures_table(figures),
    )
    text = "\n".join([*filter(None, tables), f"{told}\n"])
    (folder / "results.md").write_text(text, encoding="utf-8")


def read(path: Path) -> list[Measurement]:
    """The measurements of a ``results.json``."""
    return [
        Measurement(
            **{**item, "latencies_ms": {int(k): v for k, v in item["latencies_ms"].items()}}
        )
        for item in orjson.loads(path.read_bytes())["measurements"]
    ]


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _groups(
    measurements: Sequence[Measurement],
) -> dict[tuple[str, str, str], list[Measurement]]:
    """The rounds of each case, variant and contender."""
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for item in sorted(measurements, key=_appearance(measurements)):
        groups.setdefault((item.case, item.variant, item.contender), []).append(item)
    return groups


def _appearance(
    measurements: Sequence[Measurement],
) -> Callable[[Measurement], tuple[int, int, int]]:
    """Cases, then variants, then contenders, each in the order of its first appearance."""
    cases = _ranks(item.case for item in measurements)
    variants = _ranks((item.case, item.variant) for item in measurements)
    contenders = _ranks((item.case, item.contender) for item in measurements)
    return lambda item: (
        cases[item.case],
        variants[item.case, item.variant],
        contenders[item.case, item.contender],
    )


def _ranks(names: Iterable[_Name]) -> dict[_Name, int]:
    return {name: rank for rank, name in enumerate(dict.fromkeys(names))}


def _base(measurements: Iterable[Measurement], case: str, variant: str) -> list[Measurement]:
    """The floor in this variant; where there is none, the contender that the case began with."""
    of_case = [item for item in measurements if item.case == case]
    here = [item for item in of_case if item.variant == variant]
    floor = [item for item in here if item.contender == BASE]
    first = of_case[0]
    return floor or [
        item
        for item in of_case
        if (item.variant, item.contender) == (first.variant, first.contender)
    ]


def _cells(row: Row) -> list[str]:
    return [
        row.case,
        row.variant,
        row.contender,
        f"{row.rate:,.0f}",
        "" if row.ratio is None else f"{row.ratio:.3g}",
        f"{row.cpu:.3g}",
        f"{row.broker_cpu:.3g}",
        *(f"{row.latencies_ms[n]:.3g}" if n in row.latencies_ms else "" for n in (50, 95, 99)),
        f"{row.peak_mb:.0f}",
    ]
