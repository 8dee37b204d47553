"""A virtual environment for each project that the product is compared with, made once."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

_REQUIREMENTS: Final = Path(__file__).parent / "contenders"


def python_of(project: str) -> Path:
    """The interpreter of a project's environment, which is made where it is not there yet.

    Raises:
        subprocess.CalledProcessError: it cannot be made.
    """
    requirements = _REQUIREMENTS / f"{project}.txt"
    folder = environment_folder(project, requirements.read_bytes())
    python = folder / "bin" / "python"
    # Written last: an environment that was not finished is made anew.
    complete = folder / "complete"
    if not complete.exists():
        click.echo(f"making the environment of {project}, once", err=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = f"{python} -m pip --disable-pip-version-check install --quiet --requirement".split()
        # Elsewhere than here, where pip would find the product and miss what that needs.
        subprocess.run([*pip, requirements], check=True, cwd=folder)
        complete.touch()
    return python


def environment_folder(project: str, requirements: bytes) -> Path:
    """Where an environment is: another place for other requirements or another Python."""
    version = f"{platform.python_implementation()}-{platform.python_version()}\n"
    digest = hashlib.sha256(version.encode() + requirements).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "stream-scorer" / f"bench-{project}-{digest}"
