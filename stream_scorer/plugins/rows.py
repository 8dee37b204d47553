"""Instances of several rows: predict them as one array, and give each its own rows back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def predict_rows(
    predict: Callable[[Array], Array], instances: Sequence[Array], *, padded: bool = False
) -> list[Array]:
    """Call ``predict`` once for all rows of all instances.

    Args:
        predict: takes an array of shape (rows, …) and returns one of shape (rows, …).
        instances: arrays of shape (rows of this instance, …), alike but for the rows.
        padded: fill the array up with zeros to the next power of two of rows, so that ``predict``
            sees few different shapes. For models that compile themselves anew for each shape.

    Returns:
        The predictions of each instance, of shape (rows of that instance, …).

    Raises:
        ValueError: ``predict`` returned another number of rows than it was given.
    """
    rows = instances[0] if len(instances) == 1 else np.concatenate(instances)
    if padded:
        rows = _padded(rows)
    predictions = predict(rows)
    if len(predictions) != len(rows):
        raise ValueError(f"{len(predictions)} rows were predicted for {len(rows)} rows")
    parts = []
    start = 0
    for instance in instances:
        stop = start + len(instance)
        parts.append(predictions[start:stop])
        start = stop
    return parts


def _padded(rows: Array) -> Array:
    length = 1 << (len(rows) - 1).bit_length()
    if length == len(rows):
        return rows
    padded = np.zeros((length, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded
