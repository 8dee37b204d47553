"""Tables in JSON: rows of named numbers into an array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from stream_scorer.plugins.plugin import InvalidPayload


def decode_split_json(
    payload: bytes, columns: Sequence[str], *, ignored: Sequence[str] = ()
) -> NDArray[np.float64]:
    """Read the JSON that ``DataFrame.to_json(orient="split")`` writes.

    Args:
        payload: ``{"columns": [name, …], "data": [[number, …], …]}``; an ``index`` is ignored.
        columns: the names the model needs. The payload may have them in any order.
        ignored: names that may be sent and are left out.

    Returns:
        An array of shape (rows, len(columns)), its columns in the order of ``columns``.

    Raises:
        InvalidPayload: not such JSON, no rows, a value that is not a number, or columns missing,
            unknown or doubled: these are named.
    """
    try:
        table = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidPayload(f"the payload is not JSON: {error}") from None
    if not isinstance(table, dict) or "columns" not in table or "data" not in table:
        raise InvalidPayload('expected a JSON object with "columns" and "data" (pandas-split)')
    sent, data = table["columns"], table["data"]
    if not isinstance(sent, list) or not all(isinstance(name, str) for name in sent):
        raise InvalidPayload('"columns" must be a list of names')
    if not isinstance(data, list) or not data:
        raise InvalidPayload('"data" must be a list of rows, and hold at least one')
    order = _column_order(sent, columns, ignored)
    width = len(sent)
    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != width:
            raise InvalidPayload(f"row {number} does not have {width} values")
    rows = np.array(
        [[_number(row[at], number, sent[at]) for at in order] for number, row in enumerate(data)],
        dtype=np.float64,
    )
    return rows


def _column_order(sent: list[str], columns: Sequence[str], ignored: Sequence[str]) -> list[int]:
    if missing := [name for name in columns if name not in sent]:
        raise InvalidPayload(f"missing columns: {', '.join(missing)}")
    if unknown := [name for name in sent if name not in columns and name not in ignored]:
        raise InvalidPayload(f"unknown columns: {', '.join(unknown)}")
    if len(set(sent)) != len(sent):
        doubled = sorted({name for name in sent if sent.count(name) > 1})
        raise InvalidPayload(f"columns sent twice: {', '.join(doubled)}")
    return [sent.index(name) for name in columns]


def _number(value: object, row: int, column: str) -> float:
    # bool is an int in Python, but true is no measurement.
    if type(value) is float or type(value) is int:
        return value
    raise InvalidPayload(f"row {row}, column {column!r}: not a number")
