"""``stream-scorer facade``: the HTTP side, served by gunicorn."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from stream_scorer.cli.options import conf_option, read_settings


@click.command("facade", short_help="Serve /api/predict over HTTP, by request and reply.")
@conf_option
def command(conf: Path | None) -> None:
    """Serve /api/predict over HTTP, by request and reply over Kafka.

    Listens on host and port of the conf. Stops on SIGTERM, once the calls in hand are answered.
    """
    settings = read_settings(conf)
    from http_facade.client import check_properties
    from http_facade.examples import read_examples
    from stream_scorer.config import DEFAULT_PATH

    # What the server would only find out in its processes, and tell with a stack trace.
    check_properties(settings)
    read_examples(settings)

    if conf is None and DEFAULT_PATH.exists():
        conf = DEFAULT_PATH
    if conf is not None:
        os.environ["SCORER_CONF"] = str(conf.absolute())
    # In the place of this process: signals then reach gunicorn itself.
    os.execv(  # noqa: S606 - our own interpreter, no shell
        sys.executable,
        [
            sys.executable,
            *("-m", "gunicorn"),
            *("-c", "python:http_facade.gunicorn_conf"),
            "http_facade.app:get_app()",
        ],
    )
