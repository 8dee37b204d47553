"""``stream-scorer check``: does this conf work? No Kafka needed."""

from __future__ import annotations

import mimetypes
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from stream_scorer.cli.environment import enter_environment
from stream_scorer.cli.options import conf_option, read_settings

if TYPE_CHECKING:
    from stream_scorer.cli.loading import Loaded
    from stream_scorer.config import Settings
    from stream_scorer.protocol import Answer, Request
    from stream_scorer.timing import Stages, Timing

_TYPES: Final = {
    ".npy": "application/x-npy",
    ".parquet": "application/vnd.apache.parquet",
}
"""Types of files that Python's own table does not have."""


@click.command("check", short_help="Check a conf, its plugin and model; score and time one file.")
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@conf_option
@click.option("--content-type", help="The payload's media type. Default: by the file's name.")
@click.option("--accept", help="The media type to ask for.")
@click.option("--show-conf", is_flag=True, help="Print the effective settings, secrets masked.")
@click.option(
    "--without-secrets",
    is_flag=True,
    help="Leave out the settings that hold ${env:…} or ${file:…}, but for those that name the "
    "plugin, its packages and the model.",
)
@click.option(
    "--timing/--no-timing", default=True, help="Time batches of the payload. Default: yes."
)
def command(
    file: Path | None,
    conf: Path | None,
    content_type: str | None,
    accept: str | None,
    show_conf: bool,
    without_secrets: bool,
    timing: bool,
) -> None:
    """Check the conf, load its plugin and model, and score FILE with them; needs no Kafka.

    The answer goes to standard output as it is, the rest to standard error: what the plugin takes,
    what the model is, and which versions of its libraries are here. Exits with 1 when the answer
    is a problem.

    Then batches of FILE are timed, or of the model's saved input example, for ten seconds at most:
    1, 2, 4, … requests, up to worker.max_batch_size. The size suggested for that setting is the
    smallest with at least 90 % of the most requests/s.
    """
    settings = read_settings(conf, secrets=not without_secrets)
    if file is not None or not show_conf:
        enter_environment(settings)
    if show_conf:
        click.echo(settings.shown(), nl=False)
        if file is None:
            return
    from stream_scorer.cli.loading import load_scorer
    from stream_scorer.protocol import Request, Status
    from stream_scorer.timing import Stages

    stages = Stages()
    loaded = load_scorer(settings, stages)
    _tell(*_description(settings, loaded))
    if file is not None:
        guessed = content_type or guess_content_type(file)
        request = Request.local(file.read_bytes(), guessed, accept)
        (answer,) = loaded.scorer.score([request])
        server_timing = answer.server_timing.decode()
        _tell(f"{answer.status.value}, {answer.content_type}, {server_timing}")
        click.echo(answer.body)
        if answer.status is not Status.OK:
            sys.exit(1)
        if timing:
            _time(settings, loaded, stages, request)
    elif timing:
        _time_example(settings, loaded, stages, accept)


def guess_content_type(file: Path) -> str:
    """The media type that a file's name stands for."""
    guessed = _TYPES.get(file.suffix.lower()) or mimetypes.guess_type(file.name)[0]
    return guessed or "application/octet-stream"


def _tell(*lines: str) -> None:
    for line in lines:
        click.echo(line, err=True)


def _description(settings: Settings, loaded: Loaded) -> Iterable[str]:
    from stream_scorer.plugins.description import describe, in_words, installed, size_on_disk
    from stream_scorer.plugins.loading import DEFAULT_PLUGIN

    plugin = loaded.plugin
    yield f"plugin {settings.plugin or DEFAULT_PLUGIN}: {', '.join(plugin.content_types)}"
    if told := type(plugin).__doc__:
        yield f"  {told.strip().splitlines()[0]}"
    yield f"model {loaded.model.header}"
    described = describe(loaded.model)
    size, files = size_on_disk(loaded.model)
    yield from _aligned(
        [
            ("flavors", ", ".join(loaded.model.flavors) or "none"),
            ("takes", in_words(described.inputs)),
            ("gives", in_words(described.outputs)),
            *([("params", ", ".join(described.params))] if described.params else []),
            ("on disk", f"{size / 1e3:,.0f} kB in {files} file{'' if files == 1 else 's'}"),
        ]
    )
    yield "installed"
    yield from _aligned(
        [
            (
                library.name,
                library.version or "not installed",
                f"the model asks for {library.wanted}" if library.wanted else "",
            )
            for library in installed(loaded.model)
        ]
    )


def _aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        )
        yield "  " + "  ".join(cells).rstrip()


def _time_example(settings: Settings, loaded: Loaded, stages: Stages, accept: str | None) -> None:
    """Time the model's input example, in the first form that the plugin takes."""
    from stream_scorer.plugins.description import describe, example_payloads
    from stream_scorer.protocol import Request, Status

    answer: Answer | None = None
    for payload, content_type in example_payloads(describe(loaded.model)):
        request = Request.local(payload, content_type, accept)
        (answer,) = loaded.scorer.score([request])
        if answer.status is Status.OK:
            _time(settings, loaded, stages, request)
            return
    if answer is None:
        _tell("not timed: the model has no input example; name a FILE")
    else:
        _tell("not timed: the plugin does not take the model's input example; name a FILE")


def _time(settings: Settings, loaded: Loaded, stages: Stages, request: Request) -> None:
    from stream_scorer.timing import batch_sizes, knee, measure

    largest = loaded.plugin.max_batch_size or settings.worker.max_batch_size
    sizes = batch_sizes(largest)
    timings: list[Timing] = []
    with click.progressbar(
        length=len(sizes), label="timing", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        for timing in measure(loaded.scorer, stages, request, sizes):
            timings.append(timing)
            bar.update(1)
    if not timings:
        _tell("not timed: the same payload did not always give a result")
        return
    _tell("batch", *_aligned([_HEADINGS, *map(_cells, timings)], right=True))
    chosen = knee(timings)
    _tell(
        f"worker.max_batch_size: {chosen.batch} is enough: the smallest with at least 90 % of the "
        f"most requests/s.",
        f"Under load a request waits up to {chosen.total * 1e3:.2f} ms for the batch in hand and "
        f"takes as long with its own; alone it takes {timings[0].total * 1e3:.2f} ms.",
    )
    if timings[-1].batch < largest:
        _tell(f"Batches larger than {timings[-1].batch} take too long to be timed, or fail.")
    elif chosen.batch == largest:
        _tell("It is the largest allowed: a larger one may be faster still.")


_HEADINGS: Final = ("requests", "decode ms", "predict ms", "encode ms", "all ms", "requests/s")


def _cells(timing: Timing) -> tuple[str, ...]:
    stages = (timing.decode, timing.predict, timing.encode, timing.total)
    return (str(timing.batch), *(f"{each * 1e3:.3f}" for each in stages), f"{timing.rate:,.0f}")
