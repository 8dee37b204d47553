"""The environment that a worker runs in: the server's own, or one that has the conf's packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packaging.utils import canonicalize_name

from stream_scorer.errors import SetupError

if TYPE_CHECKING:
    from stream_scorer.config import Settings
    from stream_scorer.plugins.packages import Package

_SERVED: Final = frozenset({"mlflow", "mlflow-skinny"})
"""What models list among their requirements and the server itself loads them with."""


def enter_environment(settings: Settings) -> None:
    """Go on in an environment that has the packages asked for; the server's own where it has them.

    The command is then started anew by that environment's Python, in place of this process.

    Raises:
        SetupError: they cannot be read or installed.
    """
    python = make_environment(settings)
    if python is not None:
        sys.stdout.flush()
        os.execv(python, [str(python), *sys.orig_argv[1:]])  # noqa: S606 - no shell


def make_environment(settings: Settings) -> Path | None:
    """Have the environment at hand, and return its Python; ``None``: this process will do.

    Raises:
        SetupError: the packages cannot be read or installed, or are not found where they are.
    """
    from stream_scorer.plugins import environments
    from stream_scorer.plugins.packages import unmet

    packages = packages_of(settings)
    missing = unmet(packages)
    if not environments.is_inside():
        return environments.make(packages) if missing else None
    # An address is not compared: pip notes it in words of its own.
    if hidden := [each.shown for each in missing if each.requirement.url is None]:
        raise SetupError(
            "packages are hidden by others that come before their environment: "
            f"{', '.join(hidden)}; is PYTHONPATH set?"
        )
    return None


def packages_of(settings: Settings) -> list[Package]:
    """The packages that a conf asks for, and those of its model where it asks for them.

    Raises:
        SetupError: they cannot be read.
    """
    from stream_scorer.plugins.models import fetch_requirements
    from stream_scorer.plugins.packages import read_file, read_packages
    from stream_scorer.plugins.trust import check_root

    packages = read_packages(settings.packages, settings.locate)
    if settings.model.install_requirements and settings.model_uri is not None:
        check_root(settings.model_uri, settings.model.roots, settings.locate)
        path = fetch_requirements(settings.model_uri, settings.locate)
        wanted = read_file(path, f"requirements.txt of model_uri {settings.model_uri}")
        packages += [
            each for each in wanted if canonicalize_name(each.requirement.name) not in _SERVED
        ]
    return packages
