"""Packages that a conf or a model asks for: read, and compared with what is installed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement

from stream_scorer.errors import SetupError
from stream_scorer.masking import mask_credentials

_COMMENT: Final = re.compile(r"(^|\s+)#.*$")
_HASHES: Final = re.compile(r"(\s+--hash=(sha256|sha384|sha512):[0-9a-f]+)+$")


@dataclass(frozen=True, slots=True)
class Package:
    """One package that is asked for; ``hashes`` are pip's options, of which one must match."""

    requirement: Requirement
    hashes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """As a requirement file has it; may hold credentials."""
        return " ".join([str(self.requirement), *self.hashes])

    @property
    def shown(self) -> str:
        """For messages, credentials masked."""
        return mask_credentials(str(self.requirement))


def read_packages(entries: Sequence[str], locate: Callable[[str], Path] = Path) -> list[Package]:
    """Read the packages that a conf names.

    Args:
        entries: requirements (PEP 508, such as ``"pandas<3"``), and paths of requirement files,
            which end in ``.txt``.
        locate: finds a relative path.

    Raises:
        SetupError: an entry or a line of a file is not a requirement.
    """
    packages: list[Package] = []
    for entry in entries:
        if entry.endswith(".txt") and not entry.startswith("-"):
            packages += read_file(locate(entry), entry)
        else:
            packages.append(Package(_requirement(entry, f"{_quoted(entry)} is", "packages")))
    return packages


def read_file(path: Path, name: str) -> list[Package]:
    """Read a requirement file: requirements, their ``--hash=`` options, comments.

    Args:
        path: the file.
        name: what errors call it.

    Raises:
        SetupError: it cannot be read, or a line is something else, such as another option.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SetupError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{name}: not a text file in UTF-8") from None
    packages = []
    for number, line in _lines(text):
        hashes = _HASHES.search(line)
        named = line[: hashes.start()] if hashes else line
        requirement = _requirement(named, f"line {number}, {_quoted(line)}, is", name)
        packages.append(Package(requirement, tuple(hashes[0].split()) if hashes else ()))
    return packages


def unmet(packages: Iterable[Package]) -> list[Package]:
    """Those that are not installed here, or not as asked for."""
    return [package for package in packages if not _is_met(package.requirement)]


def needed_by(name: str) -> Iterator[Requirement]:
    """What an installed package needs, and what that needs, as far as it is installed."""
    seen = set()
    waiting = [Requirement(name)]
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            needed = list(_needs(requirement))
        except metadata.PackageNotFoundError:
            continue
        yield from needed
        waiting += needed


def _requirement(text: str, told: str, place: str) -> Requirement:
    # packaging takes any character in an address and in a quoted text, and what pip is given is a
    # file: neither a line of its own nor an option may come from within one.
    words = text.split()
    try:
        if len(text.splitlines()) != 1 or any(word.startswith("-") for word in words):
            raise InvalidRequirement
        requirement = Requirement(text)
        scheme = urlsplit(requirement.url or "https:").scheme
    except ValueError:
        raise SetupError(f"{told} not a package requirement @ {place}") from None
    if "${" in text:
        raise SetupError(
            f"{told} not taken: pip would fill in ${{…}} from its environment @ {place}"
        )
    # What lies there may change, while the environment that was made of it is kept.
    if scheme.rpartition("+")[2] in {"", "file"}:
        raise SetupError(f"{told} not taken: an address of this machine @ {place}")
    return requirement


def _quoted(text: str) -> str:
    return repr(mask_credentials(text))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines with something in them, joined where a backslash says so, and their numbers."""
    joined = ""
    start = 0
    for number, raw in enumerate(text.splitlines(), 1):
        start = start if joined else number
        line = _COMMENT.sub("", raw).rstrip()
        joined += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        if joined.strip():
            yield start, joined.strip()
        joined = ""
    if joined.strip():
        yield start, joined.strip()


def _is_met(requirement: Requirement) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    seen = set()
    waiting = [requirement]
    while waiting:
        asked = waiting.pop()
        if not _is_installed(asked):
            return False
        # Of what an extra brings, too: extras name one another, some in circles.
        if asked.extras and str(asked) not in seen:
            seen.add(str(asked))
            waiting += _needs(asked)
    return True


def _is_installed(requirement: Requirement) -> bool:
    try:
        installed = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    if requirement.url is not None:
        return _origin(installed) == requirement.url.partition("#")[0]
    return requirement.specifier.contains(installed.version, prereleases=True)


def _origin(installed: metadata.Distribution) -> str | None:
    """The address that a package was installed from, where that was not an index (PEP 610)."""
    text = installed.read_text("direct_url.json")
    return None if text is None else str(json.loads(text).get("url"))


def _needs(requirement: Requirement) -> Iterator[Requirement]:
    """What an installed package needs itself, with the extras that are asked for."""
    extras = ["", *requirement.extras]
    for text in metadata.requires(requirement.name) or ():
        needed = Requirement(text)
        marker, needed.marker = needed.marker, None
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield needed
