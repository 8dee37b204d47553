"""What the commands share: the conf option, the settings, the logging."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream_scorer import logs

if TYPE_CHECKING:
    from stream_scorer.config import Settings

_log = logging.getLogger(__name__)

conf_option = click.option(
    "--conf",
    type=click.Path(path_type=Path),
    envvar="SCORER_CONF",
    help="The conf file. Default: ./conf.yaml where it exists.",
)


def read_settings(conf: Path | None, *, secrets: bool = True) -> Settings:
    """Load the settings, with or without their secrets; set up the logging that they ask for."""
    from stream_scorer.config import load_settings

    settings = load_settings(conf, os.environ, secrets=secrets)
    logs.set_up(settings.logging)
    return settings


def tell(text: str, *, error: bool = False) -> None:
    """Tell people something: as it is, or as a line of the log where those are JSON."""
    if logs.is_json():
        _log.log(logging.ERROR if error else logging.INFO, text)
    else:
        click.echo(text, err=error)
