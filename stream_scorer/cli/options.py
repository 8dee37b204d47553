"""What the commands share: the conf option, the settings, the logging."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stream_scorer.config import Settings

conf_option = click.option(
    "--conf",
    type=click.Path(path_type=Path),
    envvar="SCORER_CONF",
    help="The conf file. Default: ./conf.yaml where it exists.",
)


def read_settings(conf: Path | None) -> Settings:
    """Load the settings and set up the logging that they ask for."""
    from stream_scorer.config import load_settings

    settings = load_settings(conf, os.environ)
    logging.basicConfig(level=settings.logging.level, format=settings.logging.format, force=True)
    return settings
