"""The ``docker`` command, for building an image and running it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stream_scorer.errors import OperationError, ScorerError, SetupError

_GOODBYE: Final = 10.0
"""Seconds that a command has to end when this process is told to."""


class ImageRefused(SetupError):
    """An image does not do what it was built for."""


def find_daemon() -> None:
    """See whether images can be built here.

    Raises:
        SetupError: there is no docker command.
        OperationError: its daemon does not answer.
    """
    if shutil.which("docker") is None:
        raise SetupError("there is no docker command here; --context writes what it would build")
    asked = _ask("version", "--format", "{{.Server.Version}}")
    if asked.returncode != 0:
        told = asked.stderr.strip().splitlines() or ["it says nothing"]
        raise OperationError(f"no Docker daemon answers: {told[-1]}")


def has_image(name: str) -> bool:
    """Whether the daemon has an image, so that none need be pulled."""
    return _ask("image", "inspect", "--format", "{{.Id}}", name).returncode == 0


def build(context: Path, name: str, options: Sequence[str]) -> None:
    """Build an image.

    Args:
        context: a folder with a Dockerfile.
        name: what the image is called.
        options: more of ``docker build``.

    Raises:
        OperationError: it cannot be built. Docker has said why, on the standard streams.
    """
    code = _run("build", f"--tag={name}", *options, str(context))
    if code != 0:
        raise OperationError(f"no image was built: docker build ended with {code}, see above")


def check(image: str) -> None:
    """Have an image check its conf, as it will run: without network, without secrets.

    Raises:
        ImageRefused: its plugin or its model cannot be loaded; it has said why.
        OperationError: it could not be run, or failed.
    """
    code = _run(
        # Never another's of that name, where the builder keeps what it built to itself.
        *("run", "--rm", "--init", "--pull", "never", "--network", "none"),
        *("--read-only", "--tmpfs", "/tmp"),  # noqa: S108
        *(image, "check", "--without-secrets", "--no-timing"),
    )
    if code != 0:
        kind: type[ScorerError] = ImageRefused if code == ImageRefused.exit_code else OperationError
        raise kind(f"the image that was built does not work, see above; it stays {image}")


def rename(image: str, name: str) -> None:
    """Give an image another name.

    Raises:
        OperationError: Docker does not take it.
    """
    for arguments in (("tag", image, name), ("rmi", image)):
        asked = _ask(*arguments)
        if asked.returncode != 0:
            raise OperationError(f"{image} cannot be renamed {name}: {asked.stderr.strip()}")


def _ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *arguments],  # noqa: S607 - the user's own
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _run(*arguments: str) -> int:
    process = subprocess.Popen(["docker", *arguments], stdin=subprocess.DEVNULL)  # noqa: S607
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            # Told to, it ends the build or the container as well; killed, it could not.
            process.terminate()
            try:
                process.wait(_GOODBYE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
