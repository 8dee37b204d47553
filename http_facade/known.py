"""What the workers' answers have told of the model and its plugin; the facade knows neither."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from http_facade.calls import Caller, header_text

NOT_KNOWN: Final = "not known yet"

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_RANGE: Final = re.compile(rf"{_WORD}/{_WORD}(\s*;.*)?")


@dataclass(frozen=True)
class Known:
    """For reading, ``model`` and ``accepts``; ``accepted`` are the media ranges one by one."""

    model: str
    accepts: str
    accepted: tuple[str, ...]


def known(client: Caller) -> Known:
    """What the last answer told; before the first one, that nothing is known."""
    ranges = (part.strip() for part in header_text(client.accepts or "").split(","))
    accepted = tuple(dict.fromkeys(each for each in ranges if _MEDIA_RANGE.fullmatch(each)))
    return Known(
        model=header_text(client.model or NOT_KNOWN),
        accepts=", ".join(accepted) or NOT_KNOWN,
        accepted=accepted,
    )
