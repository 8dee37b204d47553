"""The columns that a caller sends, matched by name with those that a model needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from stream_scorer.plugins.plugin import InvalidPayload

LARGEST: Final = float(np.finfo(np.float32).max)
"""The largest number taken, so that none becomes infinite in a model that computes in float32."""

_MOST_NAMES: Final = 10
_LONGEST_NAME: Final = 60


@lru_cache(maxsize=256)  # producers send the same header again and again
def order_of(
    sent: tuple[str, ...], columns: tuple[str, ...], ignored: tuple[str, ...]
) -> slice | list[int]:
    """Where the model's values, in its order, stand in a row; a slice where they are its start.

    Args:
        sent: the names as they came.
        columns: the names the model needs.
        ignored: names that may be sent as well.

    Raises:
        InvalidPayload: names are missing, unknown or doubled; it lists them.
    """
    present = set(sent)
    if missing := [name for name in columns if name not in present]:
        raise InvalidPayload(f"missing columns: {_listed(missing)}")
    if unknown := sorted(present.difference(columns, ignored)):
        raise InvalidPayload(f"unknown columns: {_listed(unknown)}")
    if doubled := sorted(name for name, count in Counter(sent).items() if count > 1):
        raise InvalidPayload(f"columns sent twice: {_listed(doubled)}")
    if sent[: len(columns)] == columns:
        return slice(len(columns))
    return [sent.index(name) for name in columns]


def _listed(names: Sequence[str]) -> str:
    # The names are the caller's text, of any length; the problem that quotes them stays short.
    shown = [
        name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"
        for name in names[:_MOST_NAMES]
    ]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
