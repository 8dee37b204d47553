"""Plugins that lack only ``predict``: what a class of a few lines takes, refuses and answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stream_scorer.plugins.codecs import (
    BytesPlugin,
    ImagePlugin,
    NpyPlugin,
    TablePlugin,
    encode_array,
)
from stream_scorer.plugins.loading import AnyPlugin, PluginError, load_plugin
from stream_scorer.plugins.npy import NPY, decode_npy, encode_npy
from stream_scorer.plugins.rows import predict_rows
from stream_scorer.protocol import Answer, Status
from stream_scorer.scorer import Scorer
from tests.fakes import request

Array = NDArray[Any]


class Sums(TablePlugin[Callable[[Array], Array], Array]):
    columns = ("a", "b")
    ignored = ("label",)

    def predict(
        self, model: Callable[[Array], Array], instances: Sequence[NDArray[np.float64]]
    ) -> list[Array]:
        return predict_rows(model, instances)


class Brightness(ImagePlugin[None, Array]):
    content_types = ("image/png", "image/webp")
    size = (4, 2)
    mode = "L"

    def predict(self, model: None, instances: Sequence[NDArray[np.uint8]]) -> list[Array]:
        return predict_rows(lambda rows: rows.mean(axis=(1, 2)), instances)


class Colours(ImagePlugin[None, Array]):
    content_types = ("image/*",)
    size = (1, 1)

    def predict(self, model: None, instances: Sequence[NDArray[np.uint8]]) -> list[Array]:
        return predict_rows(lambda rows: rows[:, 0, 0], instances)


class Means(NpyPlugin[None, Array]):
    shape = (None, 2)
    dtype = np.float32

    def predict(self, model: None, instances: Sequence[Array]) -> list[Array]:
        return predict_rows(lambda rows: rows.mean(axis=1), instances)


class Lengths(BytesPlugin[None, int]):
    def predict(self, model: None, instances: Sequence[bytes]) -> list[int]:
        return [len(instance) for instance in instances]


def score(plugin: AnyPlugin, *sent: tuple[bytes, str], accept: str | None = None) -> list[Answer]:
    scorer = Scorer(
        plugin,
        lambda rows: rows.sum(axis=1),
        payload_bytes=100_000,
        result_bytes=100_000,
        max_batch_size=8,
    )
    return scorer.score(
        [request(payload=payload, content_type=kind, accept=accept) for payload, kind in sent]
    )


def picture(form: str, colour: tuple[int, int, int] = (10, 20, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 3), colour).save(file, form, **({"lossless": 1} if form == "WEBP" else {}))
    return file.getvalue()


def test_a_table_plugin_takes_each_form_in_one_batch() -> None:
    answers = score(
        Sums(),
        (b'{"columns": ["b", "a"], "data": [[1, 2], [3, 4]]}', "application/json"),
        (b' [{"a": 1, "label": "x", "b": 0.5}]', "application/json; charset=utf-8"),
        (b"[[5, 6]]", "Application/JSON"),
        (b"label,b,a\nx,7,8\n", "text/csv; header=present"),
    )
    assert [json.loads(answer.body) for answer in answers] == [[3, 7], [1.5], [11], [15]]


@pytest.mark.parametrize(
    ("accept", "content_type", "body"),
    [
        *((None, "application/json", b"[3.0,7.0]"), ("*/*", "application/json", b"[3.0,7.0]")),
        ("image/png", "application/json", b"[3.0,7.0]"),
        ("text/csv", "text/csv", b"prediction\r\n3.0\r\n7.0\r\n"),
        (NPY, NPY, encode_npy(np.array([3.0, 7.0]))),
    ],
)
def test_the_answer_is_what_the_caller_would_like(
    accept: str | None, content_type: str, body: bytes
) -> None:
    (answer,) = score(Sums(), (b"[[1, 2], [3, 4]]", "application/json"), accept=accept)
    assert (answer.status, answer.content_type, answer.body) == (Status.OK, content_type, body)


@pytest.mark.parametrize("accept", ["text/csv", NPY])
@pytest.mark.parametrize("values", [{"low": 1.5}, [[1], [2, 3]], [{"a": 1}, None]])
def test_what_has_no_such_form_is_answered_in_json(values: Any, accept: str) -> None:
    body, content_type = encode_array(values, accept)
    assert (json.loads(body), content_type) == (values, "application/json")


def test_labels_are_answered_in_each_form() -> None:
    labels = np.array(["red", "blue"])
    assert encode_array(labels.tolist(), None) == (b'["red","blue"]', "application/json")
    assert encode_array(labels, "text/csv") == (b"prediction\r\nred\r\nblue\r\n", "text/csv")
    body, _ = encode_array(labels, NPY)
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), labels)


def test_an_array_of_images_is_answered_in_npy() -> None:
    body, content_type = encode_array(np.ones((2, 3, 4)), f"text/csv;q=0.1, {NPY}")
    assert (decode_npy(body).shape, content_type) == ((2, 3, 4), NPY)


@pytest.mark.parametrize(
    ("plugin", "payload", "content_type", "status"),
    [
        (Sums(), b"<table/>", "text/html", Status.UNSUPPORTED_CONTENT_TYPE),
        (Sums(), b"[[1, 2]]", "text/csv", Status.INVALID_PAYLOAD),
        (Sums(), b"a,b\n1,2", "application/json", Status.INVALID_PAYLOAD),
        (Means(), encode_npy([[1.0]]), NPY, Status.INVALID_PAYLOAD),
        (Means(), b"[[1, 2]]", "application/json", Status.UNSUPPORTED_CONTENT_TYPE),
        (Brightness(), picture("JPEG"), "image/jpeg", Status.UNSUPPORTED_CONTENT_TYPE),
        (Brightness(), picture("JPEG"), "image/png", Status.INVALID_PAYLOAD),
        (Lengths(), b"x", "text/plain", Status.UNSUPPORTED_CONTENT_TYPE),
    ],
)
def test_what_is_not_stated_is_refused(
    plugin: AnyPlugin, payload: bytes, content_type: str, status: Status
) -> None:
    (answer,) = score(plugin, (payload, content_type))
    assert answer.status is status
    if status is Status.UNSUPPORTED_CONTENT_TYPE:
        assert all(taken in answer.body.decode() for taken in plugin.content_types)


def test_an_image_plugin_takes_the_formats_it_states() -> None:
    white = (255, 255, 255)
    kinds = (("PNG", "image/png"), ("WEBP", "image/webp"), ("WEBP", "image/png"))
    answers = score(Brightness(), *((picture(form, white), kind) for form, kind in kinds))
    assert [json.loads(answer.body) for answer in answers] == [[255]] * 3


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_an_image_plugin_of_a_range_takes_each_format(form: str) -> None:
    (answer,) = score(Colours(), (picture(form), f"image/{form.lower()}"))
    assert json.loads(answer.body) == [[10, 20, 30]]


def test_an_image_is_refused_for_the_pixels_that_the_conf_allows() -> None:
    plugin = Colours()
    plugin.image_pixels = 8
    (answer,) = score(plugin, (picture("PNG"), "image/png"))
    assert json.loads(answer.body)["detail"] == "the image has 3 x 3 pixels, more than 8"


def test_an_npy_plugin_takes_arrays_of_its_shape_as_its_type() -> None:
    sent = [np.array([[1, 2], [3, 4]], ">i2"), np.array([[5.5, 6.5]])]
    assert Means().decode(encode_npy(sent[0]), NPY).dtype == np.float32
    answers = score(Means(), *((encode_npy(array), NPY) for array in sent))
    assert [json.loads(answer.body) for answer in answers] == [[1.5, 3.5], [6]]


@given(payload=st.binary(min_size=1))
def test_a_bytes_plugin_takes_any_bytes(payload: bytes) -> None:
    assert Lengths().decode(payload, "application/octet-stream") == payload


@pytest.mark.parametrize(("base", "missing"), [("TablePlugin", "columns"), ("ImagePlugin", "size")])
def test_what_a_codec_must_be_told_is_asked_for_at_start(
    tmp_path: Path, base: str, missing: str
) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(
        f"from stream_scorer.plugins.codecs import {base}\n"
        f"class Plugin({base}):\n"
        "    def predict(self, model, instances):\n"
        "        return instances\n",
        encoding="utf-8",
    )
    with pytest.raises(PluginError, match=f"plugin.py:2: class Plugin has no {missing}$"):
        load_plugin(str(file))
