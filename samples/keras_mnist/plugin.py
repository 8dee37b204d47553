"""Handwritten digits: a picture into a small Keras network."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stream_scorer import plugins
from stream_scorer.plugins.images import decode_image, greyscale
from stream_scorer.plugins.rows import predict_rows

if TYPE_CHECKING:
    import keras

Picture = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


class Plugin(plugins.Plugin["keras.Model", Picture, Probabilities]):
    """Takes a PNG or JPEG, light on dark; answers ``[[p0, …, p9]]``, how likely each digit is."""

    # The last one is for callers who post a picture and call it JSON, as the well-known curl line
    # for this sample does: what counts is what the payload is.
    content_types = ("image/png", "image/jpeg", "application/octet-stream", "application/json")

    def load_model(self, model_uri: str) -> "keras.Model":
        """Load the Keras model; TensorFlow is imported here, which takes seconds."""
        # One thread a worker: more workers use more cores, and do not fight over them.
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
        # TensorFlow greets with a page of lines otherwise; errors are still told.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import mlflow.keras

        model = mlflow.keras.load_model(model_uri)
        # TensorFlow traces a model at the first shape it meets and again, then for any number of
        # rows, at the second. Both here, so that no request waits for it.
        for rows in (1, 2):
            model.predict_on_batch(np.zeros((rows, 28, 28), np.uint8))
        return model

    def decode(self, payload: bytes, content_type: str) -> Picture:
        """An array of shape (1, 28, 28), whatever the picture's own size and colours."""
        image = decode_image(payload, formats=("PNG", "JPEG"), max_pixels=self.image_pixels)
        return greyscale(image, 28, 28)[np.newaxis]

    def predict(self, model: "keras.Model", instances: Sequence[Picture]) -> list[Probabilities]:
        """Probabilities of shape (1, 10) for each instance."""
        return predict_rows(model.predict_on_batch, instances)
