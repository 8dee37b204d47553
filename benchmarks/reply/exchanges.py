"""What is asked over HTTP, and whether an answer is the right one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import orjson

from benchmarks.case import ROOT
from benchmarks.reply.http_responses import Response

ONNX_FILE: Final = ROOT / "samples/sklearn_wine/onnx/model/model.onnx"

_SAMPLE: Final = ROOT / "samples/sklearn_wine/data/predict-wine-quality.json"
_TARGET: Final = "quality"
_TOLERANCE: Final = 1e-5
_SEED: Final = 20090


class Exchange:
    """One request, ready to be sent, and its right answer.

    Args:
        path: where it is posted.
        body: what is posted.
        content_type: the type of ``body``.
        is_right: whether a body is the right answer. Asked once for each different body.
    """

    def __init__(
        self, path: str, body: bytes, content_type: str, is_right: Callable[[bytes], bool]
    ) -> None:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.request: bytes = head.encode() + body
        self._is_right = is_right
        # PERF: contenders answer the same request with the same bytes; they are read once.
        self._right: set[bytes] = set()

    def is_right(self, response: Response) -> bool:
        """Whether this is the right answer, with status 200."""
        if response.status != 200:
            return False
        if response.body in self._right:
            return True
        if not self._is_right(response.body):
            return False
        self._right.add(response.body)
        return True


Wines = list[list[float]]


def wines(count: int) -> list[tuple[Wines, list[float]]]:
    """Different requests of 3 wines each, and the qualities that the model gives them."""
    import onnxruntime

    sample = orjson.loads(_SAMPLE.read_bytes())
    width = len(_columns(sample))
    seeded = random.Random(_SEED)
    session = onnxruntime.InferenceSession(ONNX_FILE, providers=["CPUExecutionProvider"])
    made = []
    for _ in range(count):
        rows = [
            [round(value * seeded.uniform(0.8, 1.2), 4) for value in row[:width]]
            for row in sample["data"]
        ]
        qualities = session.run(None, {"wines": np.array(rows, np.float32)})[0]
        made.append((rows, qualities.reshape(-1).tolist()))
    return made


def wine_table(rows: Wines) -> dict[str, Any]:
    """Wines as pandas' ``split`` has them: the payload of the wine samples."""
    return {"columns": _columns(orjson.loads(_SAMPLE.read_bytes())), "data": rows}


def _columns(sample: dict[str, Any]) -> list[str]:
    columns: list[str] = sample["columns"]
    if columns[-1] != _TARGET:
        raise ValueError(f"{_SAMPLE}: the last column is not {_TARGET}")
    return columns[:-1]


def same_numbers(given: object, expected: Sequence[float]) -> bool:
    """Whether a JSON value is the list of these numbers, as far as 32 bits tell them apart."""
    return (
        isinstance(given, list)
        and len(given) == len(expected)
        and all(
            isinstance(value, (int, float)) and abs(value - right) <= _TOLERANCE
            for value, right in zip(given, expected, strict=True)
        )
    )
