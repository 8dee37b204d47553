"""Pictures of measurements: throughput by batch size, latency by callers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.measure import Measurement
from benchmarks.report import BASE, Row, summarize

_SIZE: Final = (7.5, 5.5)
"""Inches."""

BATCH_SIZE: Final = "batch-size"
"""The case whose variants are batch sizes."""


def plot(folder: Path, measurements: Sequence[Measurement]) -> None:
    """Write the pictures that the measurements hold something for, as PNG."""
    rows = summarize(measurements)
    throughput_by_batch_size(rows, folder / "throughput-by-batch-size.png")
    latency_by_callers(rows, folder / "latency-by-callers.png")


def throughput_by_batch_size(rows: Sequence[Row], path: Path) -> None:
    """Requests a second of each contender, over the most requests the model gets at once."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.case == BATCH_SIZE:
            lines.setdefault(row.contender, []).append((_number(row.variant), row.rate))
    draw(lines, path, "requests given to the model at once", "requests/s", {})


def latency_by_callers(rows: Sequence[Row], path: Path) -> None:
    """Median latency of each contender, solid, and its 99th percentile, dotted, over callers.

    Of the floor its best setting alone; none of who was asked with one number of callers only.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    asked = Counter(row.contender for row in rows if "caller" in row.variant)
    for row in rows:
        other_floor = row.contender.startswith(f"{BASE},") and BASE in asked
        if "caller" in row.variant and asked[row.contender] > 1 and not other_floor:
            for percentile in (50, 99):
                if percentile in row.latencies_ms:
                    line = lines.setdefault(f"{row.contender} p{percentile}", [])
                    line.append((_number(row.variant), row.latencies_ms[percentile]))
    dotted = {name: ":" for name in lines if name.endswith("p99")}
    draw(lines, path, "callers", "ms", dotted, logarithmic="xy")


def draw(
    lines: dict[str, list[tuple[int, float]]],
    path: Path,
    x: str,
    y: str,
    styles: dict[str, str],
    *,
    logarithmic: str = "x",
) -> None:
    """Draw lines of points into a PNG, nothing where there are none.

    Args:
        lines: points by the line's name; ``NAME p99`` has the colour of ``NAME p50``, and
            ``NAME, one less`` that of ``NAME, one more``.
        path: of the picture.
        x: what is along.
        y: what is up.
        styles: matplotlib's, by the line's name, where it is not a solid one.
        logarithmic: which of the axes are: ``x``, ``y``, both or none of them.
    """
    if not lines:
        return
    # Figures alone, without pyplot: no display is asked for.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    colours = {who: f"C{n}" for n, who in enumerate(dict.fromkeys(map(_without_kind, lines)))}
    for name, points in lines.items():
        points.sort()
        axes.plot(
            *zip(*points, strict=True),
            styles.get(name, "-"),
            color=colours[_without_kind(name)],
            marker="o",
            label=name,
        )
    ticks = sorted({at for points in lines.values() for at, _ in points})
    if "x" in logarithmic:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    if "y" in logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)


def _without_kind(line: str) -> str:
    return re.sub(r" p\d+$|, one (more|less)$", "", line)


def _number(variant: str) -> int:
    found = re.search(r"\d+", variant)
    return int(found[0]) if found else 0
