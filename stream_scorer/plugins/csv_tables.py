"""Tables in CSV: rows of named numbers into an array, and arrays into CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from itertools import islice
from math import isfinite
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream_scorer.plugins.columns import LARGEST, order_of
from stream_scorer.plugins.plugin import InvalidPayload

MAX_ROWS: Final = 100_000


def decode_csv(
    payload: bytes,
    columns: Sequence[str],
    *,
    ignored: Sequence[str] = (),
    max_rows: int = MAX_ROWS,
) -> NDArray[np.float64]:
    """Read CSV (RFC 4180) in UTF-8, whose first line names its columns.

    Args:
        payload: the text; its lines may end in any way, and a byte order mark is left out.
        columns: the names the model needs. The payload may have them in any order.
        ignored: names that may be sent and are left out, whatever their values.
        max_rows: the most rows to take.

    Returns:
        An array of shape (rows, len(columns)), its columns in the order of ``columns``. Every
        number in it is finite, also for a model that computes in float32.

    Raises:
        InvalidPayload: not such CSV, no rows or too many, a value that is not a number or is too
            large, or columns missing, unknown or doubled: these are named.
    """
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidPayload(f"the payload is not UTF-8: {error.reason}") from None
    lines = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        sent = tuple(next(lines, ()))
        order = order_of(sent, tuple(columns), tuple(ignored))
        rows = list(islice(lines, max_rows + 1))
    except csv.Error as error:
        raise InvalidPayload(f"the payload is not CSV: line {lines.line_num}: {error}") from None
    if not rows:
        raise InvalidPayload("there are no rows after the line that names the columns")
    if len(rows) > max_rows:
        raise InvalidPayload(f"there are more than {max_rows} rows")
    places = range(len(columns)) if isinstance(order, slice) else order
    values = np.empty((len(rows), len(columns)))
    for number, row in enumerate(rows):
        if len(row) != len(sent):
            raise InvalidPayload(f"row {number} does not have {len(sent)} values, but {len(row)}")
        for at, (place, name) in enumerate(zip(places, columns, strict=True)):
            try:
                value = _number(row[place])
            except ValueError:
                raise InvalidPayload(f"row {number}, column {name!r}: not a number") from None
            if abs(value) > LARGEST:
                raise InvalidPayload(f"row {number}, column {name!r}: the number is too large")
            values[number, at] = value
    return values


def _number(text: str) -> float:
    # float() takes more than others write: 1_000, digits of any script, nan, inf.
    if not text.isascii() or "_" in text or text.strip()[-1:].isalpha():
        raise ValueError(text)
    return float(text)


def encode_csv(values: Any, columns: Sequence[str] | None = None) -> bytes:
    """Write rows as CSV in UTF-8, with a first line that names the columns.

    Args:
        values: an array or list of one dimension, a value a row, or of two. Numbers that are not
            finite become empty, as they become ``null`` in JSON.
        columns: the names; ``None`` gives ``prediction``, or for several ``prediction 0``, ….

    Raises:
        ValueError: it is no such array, it holds other things than numbers, truth values and text,
            or the names are not one for each column.
    """
    table: NDArray[Any] = np.asarray(values)
    if table.dtype.kind not in "biufU":
        raise ValueError(f"an array of {table.dtype} is not written as CSV")
    if table.ndim == 1:
        table = table[:, np.newaxis]
    if table.ndim != 2:
        raise ValueError(f"an array of {table.ndim} dimensions is not a table")
    width = table.shape[1]
    if columns is None:
        columns = [f"prediction {at}" for at in range(width)] if width > 1 else ["prediction"]
    if len(columns) != width:
        raise ValueError(f"{len(columns)} names were given for {width} columns")
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in table.tolist():
        writer.writerow(
            "" if isinstance(value, float) and not isfinite(value) else value for value in row
        )
    return text.getvalue().encode()
