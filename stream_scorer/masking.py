"""Credentials in addresses, masked wherever a text is shown or logged."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "********"

# Up to the last @ before the path: a password may hold one itself.
_USER: Final = re.compile(r"://[^/\s]*@")
# Stores hand out addresses that are signed in their query; pip also tells them without their host.
_QUERY: Final = re.compile(r"((?:://|url: )[^\s?#]*\?)[^\s#]+")


def mask_credentials(text: str) -> str:
    """The text with what may be secret in the addresses that it holds masked.

    That is who asks (``https://user:secret@host``), and the query (``?sig=…``).
    """
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(f"://{MASK}@", text))
