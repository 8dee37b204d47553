"""Content types matched: what a plugin takes, and what a caller would like back."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from falcon import mediatypes

LONGEST: Final = 255
"""Characters of a content type; no longer one is accepted, so none is remembered."""

_LONGEST_ACCEPT: Final = 1024


def accepts(media_ranges: tuple[str, ...], content_type: str) -> bool:
    """Whether a content type, as a caller sent it, lies in one of these media ranges."""
    # What is remembered comes from callers, so it is bounded in bytes too.
    return len(content_type) <= LONGEST and _matches(media_ranges, content_type)


@lru_cache(maxsize=1024)
def _matches(media_ranges: tuple[str, ...], content_type: str) -> bool:
    if "*" in content_type.partition(";")[0]:
        return False  # a range, not a type
    try:
        # Types are the same in any case (RFC 9110).
        return mediatypes.quality(content_type.lower(), ", ".join(media_ranges).lower()) > 0
    except ValueError:
        return False


def preferred(offered: tuple[str, ...], accept: str | None) -> str:
    """Which of the types on offer a caller likes best.

    Args:
        offered: the types, in lower case; of those liked alike, the first is given.
        accept: the ``accept`` header, or what somebody wrote there.

    Returns:
        The first one where there is no such header, or it names none of them.
    """
    if not accept or len(accept) > _LONGEST_ACCEPT:
        return offered[0]
    return _preferred(offered, accept)


@lru_cache(maxsize=256)
def _preferred(offered: tuple[str, ...], accept: str) -> str:
    try:
        return mediatypes.best_match(offered, accept.lower()) or offered[0]
    except ValueError:
        return offered[0]
