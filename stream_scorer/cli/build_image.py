"""``stream-scorer build-image``: an image that holds a conf, its plugin, packages and model."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from stream_scorer.cli.environment import packages_of
from stream_scorer.cli.options import conf_option, read_settings
from stream_scorer.errors import SetupError

if TYPE_CHECKING:
    from stream_scorer.config import Settings
    from stream_scorer.plugins.models import ModelFolder

BASE: Final = "stream-scorer-worker"


def _named(_: click.Context, __: click.Parameter, name: str) -> str:
    # It becomes a line of the Dockerfile; whether there is such an image, Docker says.
    if not re.fullmatch(r"[A-Za-z0-9._/:@-]+", name):
        raise click.BadParameter(f"{name!r} is not the name of an image")
    return name


@click.command("build-image", short_help="Build an image of a conf, its plugin and its model.")
@conf_option
@click.option("--tag", metavar="IMAGE", help="The image's name, such as wine-scorer:3.")
@click.option(
    "--from",
    "base",
    metavar="IMAGE",
    callback=_named,
    default=BASE,
    show_default=True,
    help="The worker's image to build upon, with the model libraries that the model needs.",
)
@click.option(
    "--include",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A file or folder in the plugin's folder that the plugin reads; may be given again.",
)
@click.option(
    "--context",
    type=click.Path(path_type=Path),
    help="Only write what would be built, into this new folder; needs no Docker.",
)
@click.argument("docker_options", nargs=-1, type=click.UNPROCESSED)
def command(
    conf: Path | None,
    tag: str | None,
    base: str,
    include: Sequence[Path],
    context: Path | None,
    docker_options: Sequence[str],
) -> None:
    """Build an image with the conf, its plugin, the packages and the model in it.

    It starts without any network but Kafka's, as a worker, or with the argument facade as that.
    What the conf has as ${env:NAME} or ${file:PATH} is left so, to be given when it runs. A model
    of a registry is downloaded here, by whoever runs this.

    The image is checked before it gets its tag, and is TAG-unchecked until then. DOCKER_OPTIONS,
    after --, go to docker build:

      stream-scorer build-image --tag wine:3 -- --build-arg PIP_INDEX_URL --pull
    """
    if (tag is None) == (context is None):
        raise click.UsageError("give either --tag or --context")
    if context is not None and docker_options:
        raise click.UsageError(f"nothing is built with --context: {docker_options[0]}")
    settings = read_settings(conf, secrets=False)
    if context is not None:
        _make(context)
        with ExitStack() as refused:
            refused.callback(shutil.rmtree, context, ignore_errors=True)
            _write(context, conf, settings, base, include)
            refused.pop_all()
        click.echo(f"Build it with: docker build --tag NAME {context}")
        return
    # A build goes on without whoever asked for it, unless that is told.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    from stream_scorer import docker

    docker.find_daemon()
    if base == BASE and not docker.has_image(base):
        raise SetupError(
            f"there is no image {BASE} here; in stream-scorer's folder, with the model libraries "
            f"that the model needs: docker build --target worker --build-arg EXTRAS=sklearn "
            f"-t {BASE} ."
        )
    unchecked = f"{tag}-unchecked"
    with tempfile.TemporaryDirectory(prefix="stream-scorer-") as name:
        model = _write(Path(name), conf, settings, base, include)
        docker.build(Path(name), unchecked, docker_options)
    docker.check(unchecked)
    docker.rename(unchecked, str(tag))
    click.echo(f"{tag}: {model.header}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise click.BadParameter(f"{folder}: {error.strerror}", param_hint="--context") from None


def _write(
    folder: Path, conf: Path | None, settings: Settings, base: str, include: Sequence[Path]
) -> ModelFolder:
    from http_facade.examples import read_examples
    from stream_scorer.build_context import write_context
    from stream_scorer.config import DEFAULT_PATH, read_conf

    read_examples(settings)
    path = DEFAULT_PATH if conf is None and DEFAULT_PATH.exists() else conf
    written = read_conf(path) if path is not None else {}
    return write_context(folder, base, written, settings, packages_of(settings), include)
