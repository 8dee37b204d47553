"""Packages that a conf asks for: present, or named with the command that installs them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from stream_scorer.errors import SetupError


class PackagesMissing(SetupError):
    """Packages of the conf are not installed, or not in the version it asks for."""


def check_packages(packages: Sequence[str]) -> None:
    """Check that every requirement (PEP 508, such as ``"pandas<3"``) is met.

    Raises:
        PackagesMissing: some are not; the text names them and the command that would mend it.
        SetupError: an entry is not a requirement.
    """
    missing = []
    found = []
    for text in packages:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            raise SetupError(f"{text!r} is not a package requirement @ packages") from None
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(text)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            missing.append(text)
            found.append(f"{requirement.name} {version}")
    if missing:
        installed = f" (installed: {', '.join(found)})" if found else ""
        raise PackagesMissing(
            f"packages missing: {', '.join(missing)}{installed}; "
            f"install them with: pip install {shlex.join(missing)}"
        )
