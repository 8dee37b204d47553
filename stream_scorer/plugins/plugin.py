"""The plugin: what a data scientist writes to put a model behind a topic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import orjson

ModelT = TypeVar("ModelT")
InstanceT = TypeVar("InstanceT")
PredictionT = TypeVar("PredictionT")


class InvalidPayload(Exception):
    """The payload cannot be scored, and that is the caller's fault.

    Its text is what the caller reads in the problem's ``detail``.
    """


class Plugin(ABC, Generic[ModelT, InstanceT, PredictionT]):
    """Turns payloads into instances, instances into predictions, and predictions into bytes.

    A plugin keeps no state of its own: the model is passed in. Its methods are called from one
    thread at a time, which is not the main thread.
    """

    content_types: ClassVar[tuple[str, ...]]
    """Media ranges of the payloads it takes, such as ``("image/png", "image/jpeg")``."""

    max_batch_size: ClassVar[int | None] = None
    """The most instances one ``predict`` gets; ``None`` leaves it to ``worker.max_batch_size``."""

    image_pixels: int = 25_000_000
    """The most pixels an image may unpack to; set from ``limits.image_pixels`` after loading."""

    def load_model(self, model_uri: str) -> ModelT:
        """Load the model from its folder; called once, at start.

        Args:
            model_uri: the local folder of the MLflow model, fetched from its registry and checked.
        """
        import mlflow.pyfunc

        model: Any = mlflow.pyfunc.load_model(model_uri)
        return model  # type: ignore[no-any-return]  # pyfunc is the model type of such a plugin

    @abstractmethod
    def decode(self, payload: bytes, content_type: str) -> InstanceT:
        """Turn one payload into one instance, which may hold several rows.

        Args:
            payload: the record's value, never empty and within ``limits.payload_bytes``.
            content_type: its media type as sent, one that ``content_types`` takes.

        Raises:
            InvalidPayload: the payload is not what the model needs.
        """

    @abstractmethod
    def predict(self, model: ModelT, instances: Sequence[InstanceT]) -> Sequence[PredictionT]:
        """Predict a batch: one prediction for each instance, in the same order.

        Raises:
            InvalidPayload: an instance cannot be predicted, by the caller's fault.
        """

    def encode(self, prediction: PredictionT, accept: str | None) -> tuple[bytes, str]:
        """Turn one prediction into a body and its media type; JSON unless overridden.

        NumPy arrays and scalars are written as JSON numbers; NaN and the infinities, for which
        JSON has no word, as ``null``.

        Args:
            prediction: what ``predict`` gave for one instance.
            accept: what the caller would like back; a plugin that cannot serve it ignores it.
        """
        return orjson.dumps(prediction, option=orjson.OPT_SERIALIZE_NUMPY), "application/json"
