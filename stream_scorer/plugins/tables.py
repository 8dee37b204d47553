"""Tables in JSON: rows of named numbers into an array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from stream_scorer.plugins.plugin import InvalidPayload

_NAMES: Final = frozenset({str})
_NUMBERS: Final = frozenset({int, float})
_LARGEST: Final = float(np.finfo(np.float32).max)
_LARGEST_SQUARE: Final = _LARGEST**2
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
    # PERF: this runs once a request. Tables of nothing but numbers are read with their types, which
    # costs half as much as to look at every value; all others are looked at, to say what is wrong.
    try:
        table = _read(payload)
        values = np.array(table.data)
    # ValueError: rows of different lengths; RecursionError: something deep beside them.
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _look_closely(payload, columns, ignored)
    order = _order(table.columns, tuple(columns), tuple(ignored))
    # No value is larger than the length of the vector they all make: one call for all of them.
    if values.shape[1:] != (len(table.columns),) or np.vdot(values, values) > _LARGEST_SQUARE:
        return _look_closely(payload, columns, ignored)
    return values[:, order]


class _Table(msgspec.Struct, gc=False):
    columns: tuple[str, ...]
    data: list[list[float]]


_read: Final = msgspec.json.Decoder(_Table).decode


def _look_closely(
    payload: bytes, columns: Sequence[str], ignored: Sequence[str]
) -> NDArray[np.float64]:
    """``decode_split_json`` for what is not plain, a value at a time."""
    try:
        table = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidPayload(f"the payload is not JSON: {error}") from None
    if not isinstance(table, dict) or "columns" not in table or "data" not in table:
        raise InvalidPayload('expected a JSON object with "columns" and "data" (pandas-split)')
    sent, data = table["columns"], table["data"]
    if not isinstance(sent, list) or not _NAMES.issuperset(map(type, sent)):
        raise InvalidPayload('"columns" must be a list of names')
    if not isinstance(data, list) or not data:
        raise InvalidPayload('"data" must be a list of rows, and hold at least one')
    order = _order(tuple(sent), tuple(columns), tuple(ignored))
    return _row_by_row(data, sent, columns)[:, order]


def _row_by_row(
    data: list[Any], sent: Sequence[str], columns: Sequence[str]
) -> NDArray[np.float64]:
    """All values of the table; those in columns that are not needed count as 0.

    Raises:
        InvalidPayload: names the first value that is not a number, or too large.
    """
    needed = set(columns)
    values = np.zeros((len(data), len(sent)))
    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(sent):
            raise InvalidPayload(f"row {number} is not a list of {len(sent)} values")
        for at, (name, value) in enumerate(zip(sent, row, strict=True)):
            if name not in needed:
                continue
            # The type itself is compared: True is an int in Python, but no measurement.
            if type(value) not in _NUMBERS:
                raise InvalidPayload(f"row {number}, column {name!r}: not a number")
            if abs(value) > _LARGEST:
                raise InvalidPayload(f"row {number}, column {name!r}: the number is too large")
            values[number, at] = value
    return values


@lru_cache(maxsize=256)  # producers send the same header again and again
def _order(
    sent: tuple[str, ...], columns: tuple[str, ...], ignored: tuple[str, ...]
) -> slice | list[int]:
    """Where the model's values, in its order, stand in a row; a slice where they are its start."""
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
