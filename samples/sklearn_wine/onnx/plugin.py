"""The quality of white wines, from the same tree converted to ONNX.

The worker then needs neither scikit-learn nor pandas: it starts at once and stays small.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from numpy.typing import NDArray

from stream_scorer import plugins
from stream_scorer.plugins.rows import predict_rows
from stream_scorer.plugins.tables import decode_split_json

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Rows = NDArray[np.float64]
Qualities = NDArray[np.float32]

COLUMNS = (
    *("fixed acidity", "volatile acidity", "citric acid", "residual sugar", "chlorides"),
    *("free sulfur dioxide", "total sulfur dioxide", "density", "pH", "sulphates", "alcohol"),
)


class Plugin(plugins.Plugin["InferenceSession", Rows, Qualities]):
    """Takes pandas-split JSON of any number of wines; answers a list with each one's quality."""

    content_types = ("application/json",)

    def load_model(self, model_uri: str) -> "InferenceSession":
        """Open the ONNX file that the model's description names."""
        import onnxruntime

        folder = Path(model_uri)
        onnx = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["onnx"]
        options = onnxruntime.SessionOptions()
        # One thread a worker: more workers use more cores, and do not fight over them.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(
            folder / onnx["data"], options, providers=["CPUExecutionProvider"]
        )

    def decode(self, payload: bytes, content_type: str) -> Rows:
        """An array of shape (wines, 11). The quality may come along, as in the training data."""
        return decode_split_json(payload, COLUMNS, ignored=("quality",))

    def predict(self, model: "InferenceSession", instances: Sequence[Rows]) -> list[Qualities]:
        """Qualities of shape (wines,) for each instance, all predicted in one call."""

        def run(rows: Rows) -> Qualities:
            # No loss: scikit-learn's trees, too, compare their inputs as float32.
            qualities: Qualities = model.run(None, {"wines": rows.astype(np.float32)})[0]
            return qualities.reshape(-1)

        return predict_rows(run, instances)
