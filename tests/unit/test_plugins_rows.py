from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_scorer.plugins.rows import predict_rows

Array = NDArray[Any]


class Doubler:
    """A model that notes the shapes it is called with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, rows: Array) -> Array:
        self.shapes.append(rows.shape)
        doubled: Array = rows.sum(axis=1) * 2
        return doubled


def instances(*lengths: int) -> list[Array]:
    rows = np.arange(sum(lengths) * 2, dtype=np.float64).reshape(-1, 2)
    return np.split(rows, np.cumsum(lengths)[:-1])


@pytest.mark.parametrize("lengths", [(1,), (3,), (1, 1), (3, 1, 2), (1, 5, 1, 1, 1)])
def test_each_instance_gets_its_own_rows_back(lengths: tuple[int, ...]) -> None:
    batch = instances(*lengths)
    predictions = predict_rows(Doubler(), batch)
    assert len(predictions) == len(batch)
    for instance, prediction in zip(batch, predictions, strict=True):
        np.testing.assert_array_equal(prediction, instance.sum(axis=1) * 2)


def test_the_model_is_called_once_for_the_batch() -> None:
    model = Doubler()
    predict_rows(model, instances(3, 1, 2))
    assert model.shapes == [(6, 2)]


def test_a_model_that_loses_rows_is_told() -> None:
    with pytest.raises(ValueError, match="1 rows were predicted for 4 rows"):
        predict_rows(lambda rows: rows[:1], instances(2, 2))
