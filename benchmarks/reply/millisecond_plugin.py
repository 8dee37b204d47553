"""A plugin whose model takes a millisecond for each instance and no CPU: it sleeps.

A number n is answered with 3 n + 1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar, Final

from stream_scorer import plugins

CONTENT_TYPE: Final = "text/plain"

_SECONDS: Final = 0.001


def answer(number: int) -> int:
    """What the model makes of a number."""
    return 3 * number + 1


class Plugin(plugins.Plugin[None, int, int]):
    """Takes decimal text."""

    content_types: ClassVar[tuple[str, ...]] = (CONTENT_TYPE,)

    def load_model(self, model_uri: str) -> None:
        """There is no model but the formula."""

    def decode(self, payload: bytes, content_type: str) -> int:
        return int(payload)

    def predict(self, model: None, instances: Sequence[int]) -> list[int]:
        # Once for all of them: each sleep is some tenths of a millisecond longer than asked for.
        time.sleep(_SECONDS * len(instances))
        return [answer(number) for number in instances]
