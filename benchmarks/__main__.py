"""The command: runs cases on a Kafka of its own, prints the table and writes it down."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import click

from benchmarks import plots, reply, report
from benchmarks.broker import BenchmarkKafka
from benchmarks.case import ONE_THREAD, Case, Context, RunFailed
from benchmarks.cases import CASES
from benchmarks.measure import Figure, Measurement

DAILY: Final = ("wine-onnx", "wine-sklearn", "mnist")
"""What the quick form runs where nothing is named: under three minutes."""


ALL: Final[Mapping[str, Case]] = {**CASES, **reply.CASES}
"""Every case by its name."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option("--quick", is_flag=True, help="Fewer requests and variants, and one round.")
@click.option(
    "--only",
    "contenders",
    multiple=True,
    metavar="CONTENDER",
    help="Of cases from topic to topic, this contender; may be given more than once.",
)
@click.option("--rounds", type=click.IntRange(1), help="How often each runs.  [5; quick: 1]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/benchmarks"),
    show_default=True,
    help="Folder for the table, the figures of each round and the pictures.",
)
def main(
    names: tuple[str, ...],
    quick: bool,
    contenders: tuple[str, ...],
    rounds: int | None,
    out: Path,
) -> None:
    """Measure the cases NAMES, or all of them, on a real Kafka started for it."""
    known = (*ALL, reply.FOOTPRINT)
    if unknown := sorted(set(names).difference(known)):
        raise click.UsageError(f"no case {', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = names or (DAILY if quick else known)
    cases = ALL if not contenders else {name: _only(name, contenders) for name in chosen}
    rounds = rounds or (1 if quick else 5)
    # What is expected is computed here, by the same libraries.
    os.environ.update(ONE_THREAD)
    measurements: list[Measurement] = []
    figures: list[Figure] = []
    failures: list[str] = []
    with (
        BenchmarkKafka() as kafka,
        tempfile.TemporaryDirectory(prefix="stream-scorer-bench-") as scratch,
    ):
        context = Context(kafka.bootstrap, kafka.pid, Path(scratch))
        for name in chosen:
            try:
                if name == reply.FOOTPRINT:
                    figures += reply.footprint(context, quick)
                    continue
                for measurement in _told(cases[name].run(context, rounds, quick)):
                    measurements.append(measurement)
            except RunFailed as failure:
                failures.append(f"{name}: {failure}")
                click.echo(failures[-1], err=True)
    figures = [*reply.figures(measurements), *figures]
    if measurements or figures:
        report.write(out, measurements, figures)
        click.echo((out / "results.md").read_text(encoding="utf-8"), nl=False)
        plots.plot(out, measurements)
    if failures:
        click.echo(f"{len(failures)} failed:", err=True)
        for text in failures:
            click.echo(text, err=True)
        sys.exit(1)


def _only(name: str, contenders: tuple[str, ...]) -> Case:
    """A case with these contenders alone."""
    if name not in CASES:
        raise click.UsageError(f"--only is for cases from topic to topic: {', '.join(CASES)}")
    there = {each.name: None for variant in CASES[name].variants for each in variant.contenders}
    if unknown := sorted(set(contenders).difference(there)):
        raise click.UsageError(
            f"no contender {', '.join(unknown)} in {name}; there are: {', '.join(there)}"
        )
    return CASES[name].only(contenders)


def _told(measurements: Iterable[Measurement]) -> Iterable[Measurement]:
    """The same, each told as it comes."""
    began = time.monotonic()
    for item in measurements:
        what = " ".join(filter(None, (item.case, item.variant)))
        took = time.monotonic() - began
        click.echo(
            f"round {item.round + 1}  {what}  {item.contender}: {item.rate:,.0f}/s ({took:.0f} s)",
            err=True,
        )
        began = time.monotonic()
        yield item


if __name__ == "__main__":
    main()
