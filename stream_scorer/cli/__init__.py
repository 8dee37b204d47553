"""The command line: ``stream-scorer COMMAND``, one file a command, wiring only."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from stream_scorer import __version__
from stream_scorer.cli.options import tell
from stream_scorer.errors import ScorerError

COMMANDS: Final = (
    *("dev", "worker", "facade", "check", "send", "new"),
    *("install", "build-image"),
)


class _Commands(click.Group):
    """Imports a command's file only when it is needed, so that ``--help`` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"stream_scorer.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stream-scorer")
def stream_scorer() -> None:
    """Score requests from Kafka topics with MLflow models and pluggable payloads.

    Exit codes: 0 done, 1 failed at run time, 2 wrong usage or configuration.
    """


def main() -> None:
    """Run the command that the arguments name."""
    try:
        stream_scorer(prog_name="stream-scorer")
    except ScorerError as error:
        tell(f"stream-scorer: {error}", error=True)
        sys.exit(error.exit_code)
