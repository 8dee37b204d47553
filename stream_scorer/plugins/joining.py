"""Requests predicted as one: their data joined, row after row, and the predictions split again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

import numpy as np


class Split(NamedTuple):
    """A table as JSON has it (pandas-split), not read yet: that is done once for many."""

    columns: list[Any]
    data: list[Any]
    labels: list[Any] | None
    """Of the rows; ``None``: they are counted."""


class Records(NamedTuple):
    """A table as JSON has it, an object a row, not read yet."""

    data: list[Any]


def kind_of(data: Any) -> object | None:
    """What data must have in common to be joined; ``None`` where its rows cannot be told apart."""
    import pandas as pd

    match data:
        case Split():
            named = all(isinstance(name, str) for name in data.columns)
            return ("split", tuple(data.columns), data.labels is None) if named else None
        case Records():
            rows = data.data
            alike = all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows)
            return ("records", tuple(rows[0])) if rows and alike else None
        case pd.DataFrame():
            return ("frame", tuple(data.columns), tuple(data.dtypes), _is_counted(data.index))
        case np.ndarray() if data.ndim:
            return ("array", data.dtype, data.shape[1:])
        case dict() if _are_arrays(data.values()) and _common_length(data.values()) is not None:
            return tuple((name, value.dtype, value.shape[1:]) for name, value in data.items())
    return None


def types_of(data: Any) -> object | None:
    """The types in each row of a table that is still to be read, which decide those it gets."""
    match data:
        case Split():
            return frozenset(tuple(map(type, row)) for row in data.data)
        case Records():
            return frozenset(tuple(map(type, row.values())) for row in data.data)
    return None


def rows_of(data: Any) -> int:
    """How many rows there are in data that has a kind."""
    match data:
        case Split() | Records():
            return len(data.data)
        case dict():
            return _common_length(data.values()) or 0
    return len(data)


def joined(parts: Sequence[Any]) -> Any:
    """All rows of data of one kind, in order."""
    import pandas as pd

    match parts[0]:
        case Split(columns, _, labels):
            data = list(chain.from_iterable(part.data for part in parts))
            if labels is not None:
                labels = list(chain.from_iterable(part.labels for part in parts))
            return Split(columns, data, labels)
        case Records():
            return Records(list(chain.from_iterable(part.data for part in parts)))
        case pd.DataFrame():
            return pd.concat(parts, ignore_index=_is_counted(parts[0].index))
        case dict():
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def parted(values: Any, rows: Sequence[int]) -> list[Any] | None:
    """The predictions of each part, or ``None`` where they are not one for each row."""
    import pandas as pd

    parts = [slice(start, stop) for start, stop in pairwise(accumulate(rows, initial=0))]
    match values:
        case dict() if _common_length(values.values()) == sum(rows):
            return [{name: value[part] for name, value in values.items()} for part in parts]
        case pd.DataFrame() | pd.Series() if len(values) == sum(rows):
            return [values.iloc[part] for part in parts]
        case np.ndarray() | list() if _length(values) == sum(rows):
            return [values[part] for part in parts]
    return None


def _is_counted(index: Any) -> bool:
    import pandas as pd

    # Labels of a plain count say nothing, so joined rows are counted anew.
    return bool(index.equals(pd.RangeIndex(len(index))))


def _are_arrays(values: Iterable[Any]) -> bool:
    return all(isinstance(value, np.ndarray) for value in values)


def _common_length(values: Iterable[Any]) -> int | None:
    """How many rows arrays and lists have; ``None`` where they are not of as many rows each."""
    lengths = {_length(value) for value in values}
    return lengths.pop() if len(lengths) == 1 else None


def _length(value: Any) -> int | None:
    match value:
        case list():
            return len(value)
        case np.ndarray() if value.ndim:
            return len(value)
    return None
