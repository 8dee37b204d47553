"""A plugin without a model: every payload comes back as it is."""

from __future__ import annotations

from collections.abc import Sequence

from stream_scorer import plugins


class Plugin(plugins.Plugin[None, bytes, bytes]):
    """Takes any bytes and answers the same."""

    content_types = ("application/octet-stream",)

    def load_model(self, model_uri: str) -> None:
        """There is no model."""

    def decode(self, payload: bytes, content_type: str) -> bytes:
        return payload

    def predict(self, model: None, instances: Sequence[bytes]) -> Sequence[bytes]:
        return instances

    def encode(self, prediction: bytes, accept: str | None) -> tuple[bytes, str]:
        return prediction, "application/octet-stream"
