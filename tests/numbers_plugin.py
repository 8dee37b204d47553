"""A plugin whose right answers can be computed: a number n becomes 3 n + 1.

Some payloads are traps, each for one promise of the engine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import stream_scorer.plugins as plugins
from stream_scorer.plugins import InvalidPayload


def expected(number: int) -> bytes:
    """The right answer's body."""
    return str(3 * number + 1).encode()


class Plugin(plugins.Plugin[None, str, str]):
    """Takes text: a decimal number, or one of the traps.

    ``slow:SECONDS:FILE`` makes the file first, to tell that it has begun.
    """

    content_types: ClassVar[tuple[str, ...]] = ("text/plain", "application/x-number")

    def load_model(self, model_uri: str) -> None:
        """There is no model but the formula."""

    def decode(self, payload: bytes, content_type: str) -> str:
        text = payload.decode(errors="replace")
        if text == "decode-bug":
            raise RuntimeError("in decode, at /secret/path")
        word = text.partition(":")[0]
        if not text.lstrip("-").isdigit() and word not in {"boom", "exit", "short", "slow", "big"}:
            raise InvalidPayload(f"not a number: {text[:20]!r}")
        return text

    def predict(self, model: None, instances: Sequence[str]) -> Sequence[str]:
        for text in instances:
            if text == "boom":
                raise RuntimeError("in predict, at /secret/path")
            if text == "exit":
                raise SystemExit(3)
            if text.startswith("slow:"):
                _, seconds, *marker = text.split(":")
                for path in marker:
                    Path(path).touch()
                time.sleep(float(seconds))
        return [text for text in instances if text != "short"]

    def encode(self, prediction: str, accept: str | None) -> tuple[bytes, str]:
        word, _, rest = prediction.partition(":")
        if word == "big":
            return b"x" * int(rest), "text/plain"
        if word == "slow":
            return b"slow", "text/plain"
        return expected(int(prediction)), "text/plain"
