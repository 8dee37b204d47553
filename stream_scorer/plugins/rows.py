"""Instances of several rows: predict them as one array, and give each its own rows back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def predict_rows(predict: Callable[[Array], Array], instances: Sequence[Array]) -> list[Array]:
    """Call ``predict`` once for all rows of all instances.

    Args:
        predict: takes an array of shape (rows, …) and returns one of shape (rows, …).
        instances: arrays of shape (rows of this instance, …), alike but for the rows.

    Returns:
        The predictions of each instance, of shape (rows of that instance, …).

    Raises:
        ValueError: ``predict`` returned another number of rows than it was given.
    """
    rows = instances[0] if len(instances) == 1 else np.concatenate(instances)
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
