"""Which requests of a turn are worth scoring: those that are answered before their deadlines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_SLOWER: Final = 1.2
"""How much the expected time for a request may grow from turn to turn.

A model that takes the same for one request as for a hundred must not be thought slow for the
hundred because one came alone.
"""

_WAY_BACK: Final = 1.1
"""What the answers' way to their callers adds to a turn, at the most loaded."""


class Admission:
    """Expects turns to take as long for each request as the last ones did.

    All requests of a turn are answered at its end, so each that is taken makes the end later for
    the others. Under a backlog those with the most time left are taken, as many as are done in
    time: the others would come too late, and would make more come too late.
    """

    def __init__(self) -> None:
        self._each_ms: float | None = None

    def refused(self, left: Mapping[int, float], others: int) -> set[int]:
        """Which requests are not to be scored.

        One of them is tried, the one with the most time left, unless it is late already: the
        expectation may be wrong.

        Args:
            left: how much time each request with a deadline has left, in ms, by any number.
            others: how many requests without a deadline there are, which are all taken.
        """
        each = _WAY_BACK * (self._each_ms or 0.0)
        order = sorted(left, key=left.__getitem__, reverse=True)
        taken = 0
        while taken < len(order) and left[order[taken]] >= (others + taken + 1) * each:
            taken += 1
        if taken == 0 and left[order[0]] >= 0:
            taken = 1
        return set(order[taken:])

    def took(self, milliseconds: float, requests: int) -> None:
        """Tell how long a turn took in which so many requests were scored."""
        if requests == 0:
            return
        each = milliseconds / requests
        self._each_ms = each if self._each_ms is None else min(each, _SLOWER * self._each_ms)
