"""``stream-scorer install``: the conf's packages, before anything needs them."""

from __future__ import annotations

from pathlib import Path

import click

from stream_scorer.cli.environment import make_environment
from stream_scorer.cli.options import conf_option, read_settings


@click.command("install", short_help="Install the conf's packages, so that a start needs none.")
@conf_option
def command(conf: Path | None) -> None:
    """Install the packages of the conf into the environment that a worker runs in.

    A worker does so by itself at its first start. For machines without a network, and images: the
    environment is then there, if the packages and what else is installed stay the same.
    """
    python = make_environment(read_settings(conf, secrets=False))
    if python is None:
        click.echo("nothing is missing")
    else:
        click.echo(python.parents[1])
