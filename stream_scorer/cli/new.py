"""``stream-scorer new``: begin a plugin from files that work."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("new", short_help="Write a new plugin with its conf, a sample and a test.")
def command() -> None:
    """Write what one begins with."""


@command.command("plugin")
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where to write; must not be there yet. Default: a folder called NAME.",
)
@click.option(
    "--model",
    metavar="URI",
    help="An MLflow model, whose signature and input example say what the plugin takes.",
)
def plugin(name: str, folder: Path | None, model: str | None) -> None:
    """Write a folder with a plugin called NAME, its conf, a sample request and a test that passes.

    The model itself is not loaded. One that holds a pickle has to be allowed in the conf before the
    test passes.
    """
    from stream_scorer.plugins.new import new_plugin

    folder = folder or Path(name)
    written = new_plugin(name, folder, model)
    for path in written:
        click.echo(path)
    click.echo(f"Begin with {written[0]}; test it with: pytest {folder}")
