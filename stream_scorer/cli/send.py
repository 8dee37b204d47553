"""``stream-scorer send``: produce files as requests, collect the answers."""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream_scorer.cli.options import conf_option, read_settings

if TYPE_CHECKING:
    from stream_scorer.kafka.sending import Outgoing, Received


@click.command("send", short_help="Send files as requests and collect the answers.")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@conf_option
@click.option("--content-type", required=True, help="The payloads' media type.")
@click.option("--count", type=click.IntRange(min=1), default=1, help="Send each file so often.")
@click.option("--key", help="The key of every request. Default: none.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write each answer to a file in this folder, named by number and file.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds without any answer after which the rest is given up.",
)
def command(
    files: Sequence[Path],
    conf: Path | None,
    content_type: str,
    count: int,
    key: str | None,
    out: Path | None,
    timeout: float,
) -> None:
    """Send FILES to the requests topic and collect their answers.

    One answer is printed; of several, how they ended. Exits with 1 if any answer is not ok or
    does not come.
    """
    settings = read_settings(conf)
    from stream_scorer.kafka.sending import Outgoing, RequestSender

    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.BadParameter(f"{out}: {error.strerror}", param_hint="--out") from None
    if not content_type.isascii():
        raise click.BadParameter("not a media type", param_hint="--content-type")
    total = len(files) * count

    def outgoing() -> Iterator[Outgoing]:
        payloads = [file.read_bytes() for file in files]
        for number, payload in enumerate(
            itertools.chain.from_iterable(itertools.repeat(payloads, count))
        ):
            yield Outgoing(number, payload, content_type, os.fsencode(key) if key else None)

    endings: Counter[str] = Counter()
    sender = RequestSender(settings)
    try:
        with click.progressbar(
            length=total, label="answers", file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar:
            for received in sender.exchange(outgoing(), timeout):
                endings[received.status] += 1
                bar.update(1)
                if out is not None:
                    _write(out, files, received)
                elif total == 1:
                    click.echo(received.body)
    finally:
        sender.close()
    missing = total - endings.total()
    told = [f"{number} {status}" for status, number in endings.most_common()]
    if missing:
        told.append(f"{missing} without an answer")
    click.echo(", ".join(told), err=True)
    if missing or set(endings) - {"ok"}:
        sys.exit(1)


def _write(folder: Path, files: Sequence[Path], received: Received) -> None:
    file = files[received.request.number % len(files)]
    suffix = ".json" if received.content_type.endswith("json") else ".out"
    (folder / f"{received.request.number:06d}-{file.stem}{suffix}").write_bytes(received.body)
