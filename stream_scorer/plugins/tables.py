"""Tables in JSON: rows of named numbers into an array."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from typing import Any, Final

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from stream_scorer.plugins.columns import LARGEST, order_of
from stream_scorer.plugins.plugin import InvalidPayload

_NAMES: Final = frozenset({str})
_NUMBERS: Final = frozenset({int, float})
_LARGEST_SQUARE: Final = LARGEST**2


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
    order = order_of(table.columns, tuple(columns), tuple(ignored))
    # No value is larger than the length of the vector they all make: one call for all of them.
    if values.shape[1:] != (len(table.columns),) or np.vdot(values, values) > _LARGEST_SQUARE:
        return _look_closely(payload, columns, ignored)
    return values[:, order]


def decode_json_rows(
    payload: bytes, columns: Sequence[str], *, ignored: Sequence[str] = ()
) -> NDArray[np.float64]:
    """Read a JSON list of rows: each an object of named numbers, or a list of numbers.

    Args:
        payload: ``[{name: number, …}, …]``, the names in any order; or ``[[number, …], …]``, the
            numbers in the order of ``columns``.
        columns: the names the model needs.
        ignored: names that may be sent in objects and are left out, whatever their values.

    Returns:
        The same as ``decode_split_json``.

    Raises:
        InvalidPayload: not such JSON, no rows, a value that is not a number or is too large, or
            names missing, unknown or doubled: these are named, and the row.
    """
    try:
        rows = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidPayload(f"the payload is not JSON: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise InvalidPayload("expected a JSON list of rows, at least one")
    if isinstance(rows[0], dict):
        rows = _listed_rows(rows, payload, columns, ignored)
    return _row_by_row(rows, columns, columns)


def _listed_rows(
    rows: list[Any], payload: bytes, columns: Sequence[str], ignored: Sequence[str]
) -> list[list[Any]]:
    """The values of objects, in the order of ``columns``."""
    listed = []
    known: Set[str] | None = None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InvalidPayload(f"row {number} is not an object, as row 0 is")
        if row.keys() != known:
            try:
                order_of(tuple(row), tuple(columns), tuple(ignored))
            except InvalidPayload as error:
                raise InvalidPayload(f"row {number}: {error}") from None
            known = row.keys()
        listed.append([row[name] for name in columns])
    # Of a name sent twice the reader has kept the last value, but both colons are in the payload.
    if payload.count(b":") > sum(map(len, rows)):
        _refuse_doubled_names(payload)
    return listed


def _refuse_doubled_names(payload: bytes) -> None:
    def check(pairs: list[tuple[str, Any]]) -> None:
        names = tuple(name for name, _ in pairs)
        if len(set(names)) < len(names):
            order_of(names, tuple(set(names)), ())

    try:
        json.loads(payload, object_pairs_hook=check)
    except RecursionError:
        raise InvalidPayload("the payload is not JSON: it is too deep") from None


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
    order = order_of(tuple(sent), tuple(columns), tuple(ignored))
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
            if abs(value) > LARGEST:
                raise InvalidPayload(f"row {number}, column {name!r}: the number is too large")
            values[number, at] = value
    return values
