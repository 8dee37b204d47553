"""The whole of MLflow, for its servers."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path


def mlflow_python() -> Path:
    """The Python of an environment that has the whole of MLflow, made once and kept.

    Not this one: mlflow-skinny is the registry's client only, and the server's own requirements
    do not go together with those of the facade (gunicorn).
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stream-scorer"
    version = metadata.version("mlflow-skinny")
    folder = cache / f"mlflow-{version}-py{sys.version_info.major}{sys.version_info.minor}"
    cache.mkdir(parents=True, exist_ok=True)
    # Tests run side by side, and one of them makes it.
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _make(folder, version)
    return folder / "bin" / "python"


def _make(folder: Path, version: str) -> None:
    with tempfile.TemporaryDirectory(prefix=folder.name, dir=folder.parent) as made:
        environment = Path(made) / "environment"
        venv.create(environment, with_pip=True)
        python = str(environment / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, f"mlflow=={version}"], check=True, timeout=600)
        # The folder appears whole or not at all; nothing in it needs its old name but scripts.
        environment.rename(folder)
