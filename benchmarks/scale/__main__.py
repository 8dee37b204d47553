"""The command: measures on a Kafka of its own, and fills in docs/scale.md from what it measured."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from benchmarks.broker import BenchmarkKafka
from benchmarks.case import ONE_THREAD, ROOT, Context, RunFailed
from benchmarks.scale import drain, plots, rebalance, recovery, report
from benchmarks.scale.crew import MODES, Mode
from benchmarks.scale.records import Change, Drain, Loss, Record, append, next_round, read

_FILE: Final = "scale.jsonl"
_DOCUMENT: Final = ROOT / "docs" / "scale.md"

_Run = Callable[[Context, int, int, bool], Iterator[Record]]
_PARTS: Final[dict[str, tuple[type[Record], int]]] = {
    "drain": (Drain, 3),
    "rebalance": (Change, 1),
    "recovery": (Loss, 1),
}
"""What can be measured: its kind of record, and its usual rounds."""

_out = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the records.  [build/scale; quick: build/scale-quick]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """What more workers and partitions bring, and what it costs when workers come and go."""


@main.command()
@click.argument("names", nargs=-1, type=click.Choice([*_PARTS]))
@click.option("--quick", is_flag=True, help="To see that it works: fewer requests and workers.")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice([mode.name for mode in MODES]),
    help="Of rebalance and recovery, this mode; may be given more than once.",
)
@click.option("--rounds", type=click.IntRange(1), help="How often.  [drain 3, others 1; quick: 1]")
@_out
def run(
    names: tuple[str, ...],
    quick: bool,
    modes: tuple[str, ...],
    rounds: int | None,
    out: Path | None,
) -> None:
    """Measure NAMES, or everything, on a real Kafka started for it; adds to the records."""
    folder = _folder(out, quick)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [mode for mode in MODES if not modes or mode.name in modes]
    # What is expected is computed here, by the same libraries.
    os.environ.update(ONE_THREAD)
    failures: list[str] = []
    with (
        BenchmarkKafka() as kafka,
        tempfile.TemporaryDirectory(prefix="stream-scorer-scale-") as scratch,
    ):
        context = Context(kafka.bootstrap, kafka.pid, Path(scratch))
        for name in names or _PARTS:
            kind, usual = _PARTS[name]
            times = rounds or (1 if quick else usual)
            first = next_round(kind, read(folder / _FILE))
            try:
                for record in _run(name, chosen)(context, times, first, quick):
                    append(folder / _FILE, record)
                    click.echo(_told(record), err=True)
            except RunFailed as failure:
                failures.append(f"{name}: {failure}")
                click.echo(failures[-1], err=True)
    if failures:
        sys.exit(1)


@main.command()
@click.option("--quick", is_flag=True, help="The records of the quick form.")
@click.option(
    "--document",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=_DOCUMENT,
    help="The document to fill in, with its pictures beside.  [docs/scale.md]",
)
@_out
def render(quick: bool, document: Path, out: Path | None) -> None:
    """Fill in the tables of docs/scale.md, and draw its pictures."""
    records = read(_folder(out, quick) / _FILE)
    if not records:
        raise click.UsageError("nothing was measured yet")
    text = report.render(document.read_text(encoding="utf-8"), records)
    document.write_text(text, encoding="utf-8")
    plots.plot(document.parent, records)


def _run(name: str, modes: Sequence[Mode]) -> _Run:
    if name == "drain":
        return drain.run
    part = rebalance.run if name == "rebalance" else recovery.run
    return lambda context, rounds, first, quick: part(context, modes, rounds, first, quick)


def _folder(out: Path | None, quick: bool) -> Path:
    return out or ROOT / "build" / ("scale-quick" if quick else "scale")


def _told(record: Record) -> str:
    """A record in a line."""
    if isinstance(record, Drain):
        return (
            f"round {record.round + 1}  {record.model} {record.delivery}: {record.workers} "
            f"workers, {record.partitions} partitions: {record.rate:,.0f}/s"
        )
    if isinstance(record, Change):
        return (
            f"round {record.round + 1}  {record.delivery} {record.protocol}: {record.before} to "
            f"{record.after} workers: longest pause {max(record.pauses_ms):,.0f} ms"
        )
    return (
        f"round {record.round + 1}  {record.delivery} {record.protocol}, one killed, "
        f"{'' if record.replaced else 'not '}replaced: all again after {record.seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
