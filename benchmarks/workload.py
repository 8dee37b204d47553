"""What is asked, and whether an answer to it is right."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import orjson

from benchmarks.models import MODELS

Headers = Mapping[str, bytes]

_SEED: Final = 7
_WINES: Final = 10_000
_PICTURES: Final = 2_000
_POISON_EVERY: Final = 100

_RANGES: Final = {
    "fixed acidity": (3.8, 14.2, 1),
    "volatile acidity": (0.08, 1.1, 3),
    "citric acid": (0.0, 1.66, 2),
    "residual sugar": (0.6, 65.8, 1),
    "chlorides": (0.009, 0.346, 3),
    "free sulfur dioxide": (2.0, 289.0, 1),
    "total sulfur dioxide": (9.0, 440.0, 1),
    "density": (0.98711, 1.03898, 5),
    "pH": (2.72, 3.82, 2),
    "sulphates": (0.22, 1.08, 2),
    "alcohol": (8.0, 14.2, 1),
}
"""Each column of the wine table: its least and largest value, and its decimal places."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, and what to expect of them.

    Attributes:
        payloads: what is asked; of more requests than these, it is asked again from the start.
        content_type: the header that says what a payload is.
        right: whether an answer is right, by the number of its request, its body and its headers.
        by_key: whether the correlation travels as the record's key; else as a header.
        headers: sent with each request beside the usual ones.
    """

    payloads: Sequence[bytes]
    content_type: str
    right: Callable[[int, bytes, Headers], bool]
    by_key: bool = False
    headers: tuple[tuple[str, bytes], ...] = ()

    def payload(self, number: int) -> bytes:
        """The payload of a request."""
        return self.payloads[number % len(self.payloads)]


def wine(model: str) -> Workload:
    """Tables of three wines each, about 480 bytes, for a model by its name."""
    payloads = [_table(rows) for rows in wine_rows()]
    return Workload(payloads, "application/json", _numbers(expected(model, payloads), numbers))


def bare_wine(model: str) -> Workload:
    """The same tables as MLflow takes them: without the quality, which no signature has."""
    tables = wine_rows()
    payloads = [json.dumps({"columns": [*_RANGES], "data": rows}).encode() for rows in tables]
    answers = expected(model, [_table(rows) for rows in tables])
    return Workload(payloads, "application/json", _numbers(answers, predictions))


def wine_rows() -> list[list[list[float]]]:
    """The tables' rows, the same in every run."""
    # The same seed for every session makes figures of different days comparable.
    chance = random.Random(_SEED)
    return [
        [[round(chance.uniform(a, b), places) for a, b, places in _RANGES.values()] for _ in "123"]
        for _ in range(_WINES)
    ]


def pictures() -> Workload:
    """Digits drawn at random places, as PNG of 28 x 28 pixels."""
    from PIL import Image, ImageDraw, ImageFont

    chance = random.Random(_SEED)
    font = ImageFont.load_default(20)
    payloads = []
    for number in range(_PICTURES):
        image = Image.new("L", (28, 28))
        place = (chance.uniform(2, 14), chance.uniform(-2, 6))
        ImageDraw.Draw(image).text(place, str(number % 10), chance.randint(128, 255), font)
        file = io.BytesIO()
        image.save(file, "PNG")
        payloads.append(file.getvalue())
    return Workload(payloads, "image/png", _numbers(expected("mnist", payloads), numbers))


def blobs(size: int) -> Workload:
    """Random bytes, which no compression makes smaller, and which are to come back."""
    chance = random.Random(_SEED)
    count = max(20, min(2_000, 20_000_000 // size))
    payloads = [chance.randbytes(size) for _ in range(count)]
    return Workload(
        payloads,
        "application/octet-stream",
        lambda number, body, _: body == payloads[number % count],
    )


def poisoned(workload: Workload) -> Workload:
    """The same, but one payload in a hundred is not JSON, and has to be refused as such."""
    payloads = [
        b'{"columns": [' if number % _POISON_EVERY == 0 else payload
        for number, payload in enumerate(workload.payloads)
    ]

    def right(number: int, body: bytes, headers: Headers) -> bool:
        if number % len(payloads) % _POISON_EVERY == 0:
            return headers.get("status") == b"invalid-payload"
        return workload.right(number, body, headers)

    return Workload(payloads, workload.content_type, right)


def tensors(model_name: str) -> Workload:
    """The wines as the Open Inference Protocol's JSON, as MLServer takes them."""
    columns = len(_RANGES)
    payloads = [
        orjson.dumps(
            {
                "inputs": [
                    {
                        "name": "wines",
                        "shape": [len(rows), columns],
                        "datatype": "FP32",
                        "data": list(chain.from_iterable(rows)),
                    }
                ]
            }
        )
        for rows in wine_rows()
    ]
    answers = expected("wine-onnx", [_table(rows) for rows in wine_rows()])
    return Workload(
        payloads,
        "application/json",
        _numbers(answers, lambda body: numbers(orjson.dumps(_output(body)))),
        by_key=True,
        headers=(("mlserver-model", model_name.encode()),),
    )


def expected(model: str, payloads: Sequence[bytes]) -> list[list[float]]:
    """What a model answers when it is called straight, each answer's numbers in one list."""
    return [numbers(body) for body in MODELS[model]()(payloads)]


def numbers(body: bytes) -> list[float]:
    """The numbers of a JSON list, of lists or not.

    Raises:
        ValueError: it is no such list.
    """
    found = orjson.loads(body)
    if not isinstance(found, list):
        raise ValueError("not a list")
    if found and isinstance(found[0], list):
        found = list(chain.from_iterable(found))
    return found


def predictions(body: bytes) -> list[float]:
    """The numbers of MLflow's answer: of a list, or of the one output of an ONNX model.

    Raises:
        ValueError: it is no such answer.
    """
    try:
        found = orjson.loads(body)["predictions"]
    except (TypeError, KeyError):
        raise ValueError("no predictions") from None
    if isinstance(found, dict):
        (found,) = found.values()
    return numbers(orjson.dumps(found))


def _numbers(
    answers: Sequence[Sequence[float]], read: Callable[[bytes], Sequence[float]]
) -> Callable[[int, bytes, Headers], bool]:
    """What compares an answer's numbers with those expected, to the precision of float32."""

    def right(number: int, body: bytes, _: Headers) -> bool:
        try:
            found = read(body)
            return all(
                math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4)
                for a, b in zip(found, answers[number % len(answers)], strict=True)
            )
        except (ValueError, TypeError, LookupError):
            return False

    return right


def _table(rows: list[list[float]]) -> bytes:
    # With the quality along, as in the training data, and spaced as Python's json does it.
    data = [[*row, number % 10] for number, row in enumerate(rows)]
    return json.dumps({"columns": [*_RANGES, "quality"], "data": data}).encode()


def _output(body: bytes) -> Any:
    return orjson.loads(body)["outputs"][0]["data"]
