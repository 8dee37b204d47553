"""MLServer: the wine tree as a custom runtime, for its Kafka server."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.models import wine_onnx_rows


class WineModel(MLModel):  # type: ignore[misc]  # it brings no types where it is not installed
    """One ONNX call a request."""

    async def load(self) -> bool:
        """Open the model."""
        self._predict = wine_onnx_rows()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Qualities of shape (wines,)."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            outputs=[NumpyCodec.encode_output("qualities", self._predict(rows))],
        )
