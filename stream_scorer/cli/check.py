"""``stream-scorer check``: does this conf work? No Kafka needed."""

from __future__ import annotations

import mimetypes
import sys
from pathlib import Path

import click

from stream_scorer.cli.environment import enter_environment
from stream_scorer.cli.options import conf_option, read_settings


@click.command("check", short_help="Check a conf, its plugin and model; score one file.")
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@conf_option
@click.option("--content-type", help="The payload's media type. Default: by the file's name.")
@click.option("--accept", help="The media type to ask for.")
@click.option("--show-conf", is_flag=True, help="Print the effective settings, secrets masked.")
def command(
    file: Path | None,
    conf: Path | None,
    content_type: str | None,
    accept: str | None,
    show_conf: bool,
) -> None:
    """Check the conf, load its plugin and model, and score FILE with them; needs no Kafka.

    The answer goes to standard output as it is, the rest to standard error. Exits with 1 when the
    answer is a problem.
    """
    settings = read_settings(conf)
    if file is not None or not show_conf:
        enter_environment(settings)
    if show_conf:
        click.echo(settings.shown(), nl=False)
        if file is None:
            return
    from stream_scorer.cli.loading import load_scorer
    from stream_scorer.plugins.loading import DEFAULT_PLUGIN
    from stream_scorer.protocol import Request, Status

    loaded = load_scorer(settings)
    click.echo(
        f"plugin {settings.plugin or DEFAULT_PLUGIN}: {', '.join(loaded.plugin.content_types)}",
        err=True,
    )
    click.echo(f"model {loaded.model.header}", err=True)
    if file is None:
        return
    request = Request(
        topic=settings.topics.requests,
        partition=0,
        offset=0,
        key=None,
        payload=file.read_bytes(),
        headers=[],
        content_type=content_type or guess_content_type(file),
        accept=accept,
    )
    (answer,) = loaded.scorer.score([request])
    timing = answer.server_timing.decode()
    click.echo(f"{answer.status.value}, {answer.content_type}, {timing}", err=True)
    click.echo(answer.body)
    if answer.status is not Status.OK:
        sys.exit(1)


def guess_content_type(file: Path) -> str:
    """The media type that a file's name stands for."""
    return mimetypes.guess_type(file.name)[0] or "application/octet-stream"
