"""Plugins written for mlflow-pluggable-scoring-server, whose place this project takes, unchanged.

Such a class has no ``decode``: its ``predict(model, data)`` gets one request's bytes and gives its
result, most often as JSON text.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

from stream_scorer import plugins
from stream_scorer.plugins.plugin import InvalidPayload

_PACKAGE: Final = "mlflow_pluggable_scoring_server"
_MODULE: Final = f"{_PACKAGE}.plugin"
_METHODS: Final = ("load_model", "predict", "request_content_type")
_JSON: Final = "application/json"


class BasePlugin(ABC):
    """What those plugins derive from."""

    @abstractmethod
    def load_model(self, model_uri: str) -> Any:
        """Load the model."""

    @abstractmethod
    def predict(self, model: Any, data: bytes) -> Any:
        """The result of one request's payload."""

    @abstractmethod
    def request_content_type(self) -> str:
        """The media type of payloads."""

    def __repr__(self) -> str:
        return f"Request content-type: {self.request_content_type()}"


@contextmanager
def base_class_provided() -> Iterator[None]:
    """``BasePlugin`` can be imported by its old name; where that is installed, it is taken."""
    if _PACKAGE in sys.modules or find_spec(_PACKAGE) is not None:
        yield
        return
    package, module = ModuleType(_PACKAGE), ModuleType(_MODULE)
    vars(package).update(__path__=[], plugin=module)
    vars(module).update(BasePlugin=BasePlugin)
    sys.modules.update({_PACKAGE: package, _MODULE: module})
    try:
        yield
    finally:
        for name in (_PACKAGE, _MODULE):
            sys.modules.pop(name, None)


def is_original(found: type) -> bool:
    """Whether a class is such a plugin, by the methods that it has and has not."""
    return not hasattr(found, "decode") and all(
        callable(getattr(found, name, None)) for name in _METHODS
    )


def adapted(original: Any, content_type: str) -> plugins.Plugin[Any, bytes, Any]:
    """The plugin that calls such a one.

    Args:
        original: an instance of it.
        content_type: what its ``request_content_type()`` gave.
    """
    media_type = content_type.partition(";")[0].strip()

    class OfType(Adapted):
        content_types = (media_type,)

    return OfType(original)


class Adapted(plugins.Plugin[Any, bytes, Any]):
    """A plugin that passes each payload on to one of the original's, a call for each."""

    max_batch_size = 1

    def __init__(self, original: Any) -> None:
        self._original = original

    def load_model(self, model_uri: str) -> Any:
        return self._original.load_model(model_uri)

    def decode(self, payload: bytes, content_type: str) -> bytes:
        return payload

    def predict(self, model: Any, instances: Sequence[bytes]) -> list[Any]:
        return [self._predict(model, data) for data in instances]

    def _predict(self, model: Any, data: bytes) -> Any:
        try:
            return self._original.predict(model, data)
        except (ValueError, RecursionError):
            # It decodes and predicts in one, so its error does not say whose fault it was: only
            # that what was sent as JSON and is none, no model could have scored.
            if self.content_types == (_JSON,):
                _check_json(data)
            raise

    def encode(self, prediction: Any, accept: str | None) -> tuple[bytes, str]:
        if isinstance(prediction, str):
            return prediction.encode(), _JSON
        if isinstance(prediction, (bytes, bytearray)):
            return bytes(prediction), "application/octet-stream"
        return super().encode(prediction, accept)


def _check_json(data: bytes) -> None:
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is not JSON: {error}") from None
