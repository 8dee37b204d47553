"""Environments of their own for packages that the server's lacks, kept in a cache folder.

One lies over the server's: a virtual environment whose own packages come first and the server's
after them, so that only what is missing or differs is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from stream_scorer.errors import SetupError
from stream_scorer.masking import mask_credentials
from stream_scorer.plugins.packages import Package, needed_by

_log = logging.getLogger(__name__)

_DONE: Final = "stream-scorer-environment"
"""A file that is written last: an environment without it is half made, and made anew."""

_NOT_FOR_WORKERS: Final = frozenset({"flask-swagger-ui", "gunicorn"})
"""What only the facade runs on; the whole of MLflow, which people ask for, wants another one."""

_MOST_LINES: Final = 6
"""Of what pip says when it fails."""


class InstallFailed(SetupError):
    """The packages could not be installed; the text has pip's last lines."""


def is_inside() -> bool:
    """Whether this process runs in such an environment."""
    return (Path(sys.prefix) / _DONE).is_file()


def make(packages: Sequence[Package]) -> Path:
    """Make the environment that has these packages, unless it is kept from another time.

    Of two processes that need the same one, the second waits for the first. One that is kept
    needs no network, nor a folder that can be written to.

    Returns:
        The environment's Python.

    Raises:
        InstallFailed: pip refuses.
        SetupError: the cache folder cannot be written to.
    """
    try:
        folder = _cache() / _key(packages)
        python = folder / "bin" / "python"
        if not _is_kept(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with Path(f"{folder}.lock").open("wb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _log.info("another process installs %s: waiting for it", _listed(packages))
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_kept(folder):
                    _make(folder, python, packages, lock.fileno())
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        raise SetupError(f"no environment can be made for the conf's packages: {error}") from error
    return python


def _cache() -> Path:
    if named := os.environ.get("SCORER_ENVIRONMENTS"):
        return Path(named).absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches).absolute() / "stream-scorer" / "environments"


def _key(packages: Sequence[Package]) -> str:
    """Stands for the packages, this Python, and all that the server has installed."""
    server = _server_folders()
    installed = {item.name for folder in server for item in Path(folder).glob("*-info")}
    lines = {package.line for package in packages}
    parts = (sorted(lines), sys.version, sysconfig.get_platform(), server, sorted(installed))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _server_folders() -> list[str]:
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [os.path.realpath(folder) for folder in folders]


def _is_kept(folder: Path) -> bool:
    # The server's Python, which an environment links to, may have gone since.
    return (folder / _DONE).is_file() and (folder / "bin" / "python").exists()


def _make(folder: Path, python: Path, packages: Sequence[Package], lock: int) -> None:
    _log.info("installing %s into %s", _listed(packages), folder)
    # In place, and never renamed: the paths of scripts are absolute.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        # The server's pip will do, where it has one.
        venv.create(folder, symlinks=True, with_pip=find_spec("pip") is None)
        own = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
        # Not only their paths: an editable install is found by what a .pth file there runs.
        lines = [f"import site; site.addsitedir({path!r})\n" for path in _server_folders()]
        Path(own, "stream_scorer_server.pth").write_text("".join(lines), encoding="utf-8")
        _install(python, packages, lock)
        (folder / _DONE).touch()
    finally:
        if not _is_kept(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _install(python: Path, packages: Sequence[Package], lock: int) -> None:
    with tempfile.TemporaryDirectory(prefix="stream-scorer-") as name:
        # Files, because a command line is seen by every user of the machine, and addresses may
        # hold credentials. Their lines are requirements that were read, and can be no options.
        asked = Path(name, "packages")
        asked.write_text("".join(f"{package.line}\n" for package in packages), encoding="utf-8")
        constraints = Path(name, "server")
        constraints.write_text("".join(f"{line}\n" for line in _constraints()), encoding="utf-8")
        done = subprocess.run(
            [
                # -P: what lies in the current directory is none of pip's business.
                *(str(python), "-P", "-m", "pip", "--no-input", "--disable-pip-version-check"),
                *("install", "--requirement", str(asked), "--constraint", str(constraints)),
                *(["--require-hashes"] if any(package.hashes for package in packages) else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            # pip holds the lock too: should this process be killed, nobody else writes beside it.
            pass_fds=[lock],
        )
    if done.returncode != 0:
        raise InstallFailed(
            f"packages cannot be installed: {_listed(packages)}; pip: "
            + mask_credentials(" / ".join(_last_lines(done.stdout, name)))
        )


def _constraints() -> Iterator[str]:
    """What the worker's own code needs, for pip to keep to, whatever a package would like."""
    for requirement in needed_by("stream-scorer"):
        if requirement.name.lower() not in _NOT_FOR_WORKERS and requirement.specifier:
            yield f"{requirement.name}{requirement.specifier}"


def _listed(packages: Sequence[Package]) -> str:
    return ", ".join(package.shown for package in packages)


def _last_lines(text: str, place: str) -> list[str]:
    # The lines of our files, which are gone, are nothing that anybody knows.
    text = re.sub(rf"-r {re.escape(place)}\S+ \(line \d+\)", "the conf", text)
    # Between the reason and the end pip gives advice on files that nobody here has.
    told, _, _ = text.partition("To fix this you could try to:")
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[-_MOST_LINES:]
