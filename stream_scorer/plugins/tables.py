"""Tables in JSON: rows of named numbers into an array."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from stream_scorer.plugins.plugin import InvalidPayload

_NAMES: Final = frozenset({str})
_NUMBERS: Final = frozenset({int, float})
_LARGEST: Final = float(np.finfo(np.float32).max)
_NO_NAMES: Final = '"columns" must be a list of names'
_MOST_NAMES: Final = 10
_LONGEST_NAME: Final = 60


def decode_split_json(
    payload: bytes, columns: Sequence[str], *, ignored: Sequence[str] = ()
) -> NDArray[np.float64]:
    """Read the JSON that ``DataFrame.to_json(orient="split")`` writes.

    Args:
        payload: ``{"columns": [name, …], "data": [[number, …], …]}``; an ``index`` is ignored.
        columns: the names the model needs. The payload may have them in any order.
        ignored: names that may be sent and are left out, whatever their values.

    Returns:
        An array of shape (rows, len(columns)), its columns in the order of ``columns``. Every
        number in it is finite, also for a model that computes in float32.

    Raises:
        InvalidPayload: not such JSON, no rows, a value that is not a number or is too large, or
            columns missing, unknown or doubled: these are named.
    """
    try:
        table = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidPayload(f"the payload is not JSON: {error}") from None
    if not isinstance(table, dict) or "columns" not in table or "data" not in table:
        raise InvalidPayload('expected a JSON object with "columns" and "data" (pandas-split)')
    sent, data = table["columns"], table["data"]
    if not isinstance(sent, list):
        raise InvalidPayload(_NO_NAMES)
    if not isinstance(data, list) or not data:
        raise InvalidPayload('"data" must be a list of rows, and hold at least one')
    try:
        pick = _picker(tuple(sent), tuple(columns), tuple(ignored))
    except TypeError:  # a list or an object among them, which cannot be looked up
        raise InvalidPayload(_NO_NAMES) from None
    # PERF: this runs once a request. The checks below are loops in C over all rows together; only
    # where one fails is the table walked again, to say where.
    if set(map(type, data)) != {list} or set(map(len, data)) != {len(sent)}:
        raise InvalidPayload(_misshapen_row(data, len(sent)))
    values = list(chain.from_iterable(data if pick is None else map(pick, data)))
    # No value is larger than the length of the vector they all make: one call for all of them.
    if not _NUMBERS.issuperset(map(type, values)) or math.hypot(*values) > _LARGEST:
        _check_cells(values, columns)
    return np.fromiter(values, np.float64, len(values)).reshape(len(data), len(columns))


@lru_cache(maxsize=256)  # producers send the same header again and again
def _picker(
    sent: tuple[str, ...], columns: tuple[str, ...], ignored: tuple[str, ...]
) -> Callable[[list[Any]], Sequence[Any]] | None:
    """What takes the model's values, in its order, out of a row; ``None`` where they are a row."""
    if not _NAMES.issuperset(map(type, sent)):
        raise InvalidPayload(_NO_NAMES)
    if sent == columns:
        return None
    present = set(sent)
    if missing := [name for name in columns if name not in present]:
        raise InvalidPayload(f"missing columns: {_listed(missing)}")
    if unknown := sorted(present.difference(columns, ignored)):
        raise InvalidPayload(f"unknown columns: {_listed(unknown)}")
    if doubled := sorted(name for name, count in Counter(sent).items() if count > 1):
        raise InvalidPayload(f"columns sent twice: {_listed(doubled)}")
    order = [sent.index(name) for name in columns]
    # Of a single index itemgetter makes the bare value, not a row of one.
    return itemgetter(*order) if len(order) > 1 else lambda row: [row[order[0]]]


def _listed(names: Sequence[str]) -> str:
    # The names are the caller's text, of any length; the problem that quotes them stays short.
    shown = [
        name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"
        for name in names[:_MOST_NAMES]
    ]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _misshapen_row(data: list[Any], width: int) -> str:
    number = next(
        number for number, row in enumerate(data) if not isinstance(row, list) or len(row) != width
    )
    return f"row {number} is not a list of {width} values"


def _check_cells(values: list[Any], columns: Sequence[str]) -> None:
    for at, value in enumerate(values):
        row, column = divmod(at, len(columns))
        # The type itself is compared: True is an int in Python, but no measurement.
        if type(value) not in _NUMBERS:
            raise InvalidPayload(f"row {row}, column {columns[column]!r}: not a number")
        if abs(value) > _LARGEST:
            raise InvalidPayload(f"row {row}, column {columns[column]!r}: the number is too large")
