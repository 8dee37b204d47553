"""The samples' models, loaded and called straight: what the floor does, and what is expected.

Nothing of the product is used here. What a library needs is imported by the function that needs
it: contenders import this in environments that have ONNX Runtime alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

Predict = Callable[[Sequence[bytes]], list[bytes]]
"""Answers a batch: the bodies, in the order of the payloads."""

Rows = NDArray[np.float32]

MNIST_BATCH: Final = 512
"""Pictures in each call of the network, which is compiled for this number alone."""

WINE_COLUMNS: Final = 11
"""Measurements of a wine; the quality comes after them."""

_SAMPLES: Final = Path(__file__).parents[1] / "samples"
_WINE: Final = _SAMPLES / "sklearn_wine"
_MNIST: Final = _SAMPLES / "keras_mnist" / "model" / "data" / "model.keras"


def wine_onnx_rows() -> Callable[[Rows], Rows]:
    """The wine tree in ONNX, from an array of shape (rows, 11) to one of shape (rows,)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        _WINE / "onnx" / "model" / "model.onnx", options, providers=["CPUExecutionProvider"]
    )

    def predict(rows: Rows) -> Rows:
        qualities: Rows = session.run(None, {"wines": rows})[0]
        return qualities.reshape(-1)

    return predict


def wine_onnx() -> Predict:
    """The wine tree in ONNX, for payloads of pandas-split JSON."""
    return _for_tables(wine_onnx_rows())


def wine_sklearn() -> Predict:
    """The wine tree in scikit-learn, which predicts the batch as one array."""
    import skops.io

    tree = skops.io.load(_WINE / "model" / "model.skops", trusted=["sklearn.tree._tree.Tree"])
    return _for_tables(tree.predict)


def mnist() -> Predict:
    """The digits' network in Keras, for payloads of PNG pictures."""
    import keras
    from PIL import Image

    model = keras.models.load_model(_MNIST)
    model.predict_on_batch(np.zeros((MNIST_BATCH, 28, 28), np.uint8))

    def predict(payloads: Sequence[bytes]) -> list[bytes]:
        bodies: list[bytes] = []
        for start in range(0, len(payloads), MNIST_BATCH):
            part = payloads[start : start + MNIST_BATCH]
            pictures = np.zeros((MNIST_BATCH, 28, 28), np.uint8)
            for number, payload in enumerate(part):
                pictures[number] = np.asarray(Image.open(io.BytesIO(payload)).convert("L"))
            digits: NDArray[np.float32] = model.predict_on_batch(pictures)
            bodies += map(_json, digits[: len(part), np.newaxis])
        return bodies

    return predict


def echo() -> Predict:
    """No model at all: every payload comes back."""
    return list


MODELS: Final[dict[str, Callable[[], Predict]]] = {
    "wine-onnx": wine_onnx,
    "wine-sklearn": wine_sklearn,
    "mnist": mnist,
    "echo": echo,
}
"""What loads each model, by the name that contenders are told."""


def _for_tables(predict_rows: Callable[[Rows], NDArray[Any]]) -> Predict:
    def predict(payloads: Sequence[bytes]) -> list[bytes]:
        tables = [orjson.loads(payload)["data"] for payload in payloads]
        rows = np.array([row for table in tables for row in table], np.float32)[:, :WINE_COLUMNS]
        qualities = predict_rows(rows).tolist()
        ends = np.cumsum([0, *map(len, tables)]).tolist()
        return [orjson.dumps(qualities[start:end]) for start, end in pairwise(ends)]

    return predict


def _json(array: NDArray[np.float32]) -> bytes:
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
