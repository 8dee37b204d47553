"""What a caller prefers (RFC 7240): how long to wait, and whether to be told later."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.request import parse_http_list

_SECONDS: Final = re.compile(r"0*[1-9][0-9]{0,8}")


class Preferences(NamedTuple):
    """The preferences that are understood: ``wait`` in seconds, 0 where the caller does not say."""

    wait: int = 0
    respond_async: bool = False


NONE: Final = Preferences()


def preferences(header: str | None) -> Preferences:
    """Read a ``Prefer`` header; what is not understood is left out, as the RFC has it."""
    if header is None:
        return NONE
    found: dict[str, str] = {}
    for item in parse_http_list(header):
        name, _, value = item.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    wait = found.get("wait", "")
    return Preferences(
        wait=int(wait) if _SECONDS.fullmatch(wait) else 0,
        respond_async="respond-async" in found,
    )


def applied(preferred: Preferences, wait: float) -> str:
    """What ``Preference-Applied`` says where a caller waits ``wait`` seconds at most."""
    names = ["respond-async"] if preferred.respond_async else []
    if preferred.wait == wait > 0:
        names.append(f"wait={preferred.wait}")
    return ", ".join(names)
