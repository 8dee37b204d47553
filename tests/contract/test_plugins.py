"""What every plugin promises, asked of each one found under ``samples/``, and of each codec.

A sample is a folder with a ``plugin.py`` and a ``conf.yaml``; a new one is tested by being there.
So is a class of ``stream_scorer/plugins/codecs.py``, once there is a payload for its types.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import mimetypes
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from falcon import mediatypes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stream_scorer.plugins import InvalidPayload, Plugin, codecs
from stream_scorer.plugins.npy import encode_npy
from stream_scorer.plugins.rows import predict_rows

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    path.parent
    for path in (ROOT / "samples").rglob("plugin.py")
    if (path.parent / "conf.yaml").is_file()
)


@dataclass(frozen=True)
class Sample:
    plugin: Plugin[Any, Any, Any]
    model: Any
    payload: bytes
    content_type: str
    alike: tuple[str, ...]
    """The content types that the payload may be sent as."""

    def decode(self, payload: bytes) -> Any:
        return self.plugin.decode(payload, self.content_type)

    def instances(self) -> list[Any]:
        """Instances that differ: the sample's own, and shifted ones where it is an array."""
        instance = self.decode(self.payload)
        if not isinstance(instance, np.ndarray):
            return [instance] * 5
        return [np.roll(instance, shift, axis=-1) for shift in range(5)]


def load_plugin(path: Path) -> Plugin[Any, Any, Any]:
    spec = importlib.util.spec_from_file_location(f"sample_{abs(hash(path))}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plugin = module.Plugin()
    assert isinstance(plugin, Plugin)
    return plugin


def sample_payload(folder: Path) -> Path:
    """A file of the sample's own data folder, else of the nearest one above it."""
    above = (folder, *folder.parents)
    data = next(place / "data" for place in above if (place / "data").is_dir())
    assert data.is_relative_to(ROOT / "samples"), f"{folder} has no sample payload"
    return min(path for path in data.iterdir() if path.is_file())


def picture(form: str) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(7).integers(0, 256, (28, 28, 3), np.uint8)
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


CODECS = {
    each.__name__: each
    for each in vars(codecs).values()
    if isinstance(each, type) and issubclass(each, Plugin) and each.__module__ == codecs.__name__
    if not each.__name__.startswith("_")
}
STATED: dict[str, dict[str, Any]] = {
    "TablePlugin": {"columns": ("a", "b", "c", "d")},
    "ImagePlugin": {"size": (28, 28)},
    "NpyPlugin": {"shape": (None, 3, 4)},
}
PAYLOADS = {
    "application/json": b'[{"a": 1, "c": 3.5, "b": -2, "d": 5}]',
    "text/csv": b"a,b,c,d\n1,-2,3.5,5\n",
    "image/png": picture("PNG"),
    "image/jpeg": picture("JPEG"),
    "application/x-npy": encode_npy(np.arange(12.0).reshape(1, 3, 4)),
}
# Whatever is sent as plain bytes is taken as it is, so that there is nothing to refuse.
TAKEN_AS_THEY_ARE = {"BytesPlugin"}


def codec_sample(name: str, content_type: str) -> Sample:
    """A codec with a model that weighs each value by its place in the row."""

    def predict(rows: Any) -> Any:
        flat = rows.reshape(len(rows), -1)
        return flat @ np.arange(1.0, flat.shape[1] + 1)

    members = {"predict": lambda self, model, instances: predict_rows(model, instances)}
    plugin = type(name, (CODECS[name],), {**members, **STATED.get(name, {})})()
    alike = plugin.content_types if name == "ImagePlugin" else (content_type,)
    return Sample(plugin, predict, PAYLOADS[content_type], content_type, alike)


FOUND = [
    *(pytest.param(path, id=str(path.relative_to(ROOT / "samples"))) for path in FOLDERS),
    *(
        pytest.param((name, content_type), id=f"{name} {content_type}")
        for name, codec in CODECS.items()
        if name not in TAKEN_AS_THEY_ARE
        for content_type in codec.content_types
    ),
]


@pytest.fixture(scope="session", params=FOUND)
def sample(request: pytest.FixtureRequest) -> Sample:
    if not isinstance(request.param, Path):
        return codec_sample(*request.param)
    folder = request.param
    conf = yaml.safe_load((folder / "conf.yaml").read_text())
    assert ROOT / conf["plugin"] == folder / "plugin.py"
    plugin = load_plugin(ROOT / conf["plugin"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what model libraries say of each other as they load
        model = plugin.load_model(str(ROOT / conf["model_uri"].removeprefix("file:")))
    path = sample_payload(folder)
    content_type, _ = mimetypes.guess_type(path.name)
    assert content_type is not None
    return Sample(plugin, model, path.read_bytes(), content_type, plugin.content_types)


def alone(sample: Sample, instance: Any) -> Any:
    (prediction,) = sample.plugin.predict(sample.model, [instance])
    return prediction


def test_samples_and_codecs_are_found() -> None:
    assert FOLDERS
    assert {"TablePlugin", "ImagePlugin", "NpyPlugin", "BytesPlugin"} <= CODECS.keys()


def test_content_types_are_media_types(sample: Sample) -> None:
    assert isinstance(sample.plugin.content_types, tuple)
    for content_type in sample.plugin.content_types:
        main, _, sub = mediatypes.parse_header(content_type)[0].partition("/")
        assert main
        assert sub


def test_takes_its_sample_payload(sample: Sample) -> None:
    assert any(
        mediatypes.quality(accepted, sample.content_type) > 0
        for accepted in sample.plugin.content_types
    )
    body, _ = sample.plugin.encode(alone(sample, sample.decode(sample.payload)), None)
    assert body


def test_decodes_alike_for_each_of_its_content_types(sample: Sample) -> None:
    for content_type in sample.alike:
        decoded = sample.plugin.decode(sample.payload, content_type)
        np.testing.assert_array_equal(decoded, sample.decode(sample.payload))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 513])
def test_predicts_one_for_each_instance(sample: Sample, count: int) -> None:
    instance = sample.decode(sample.payload)
    assert len(sample.plugin.predict(sample.model, [instance] * count)) == count


def test_decoding_and_predicting_leave_the_instance_as_it_is(sample: Sample) -> None:
    instance = sample.decode(sample.payload)
    sample.plugin.predict(sample.model, [instance, instance])
    np.testing.assert_array_equal(instance, sample.decode(sample.payload))


def test_predictions_depend_on_neither_neighbours_nor_order(sample: Sample) -> None:
    instances = sample.instances()
    expected = [alone(sample, instance) for instance in instances]
    assert not all(np.array_equal(expected[0], other) for other in expected[1:])
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 3, 1], [0] * 20 + [4]):
        batch = sample.plugin.predict(sample.model, [instances[at] for at in order])
        for at, prediction in zip(order, batch, strict=True):
            # Another shape of batch may add up float32 numbers in another order.
            np.testing.assert_allclose(prediction, expected[at], rtol=1e-5, atol=1e-6)


ACCEPTS = [None, "", "*/*", "application/json", "application/octet-stream", "image/png", ";;,q=x"]


@pytest.mark.parametrize("accept", ACCEPTS)
def test_encodes_into_bytes_and_a_media_type(sample: Sample, accept: str | None) -> None:
    prediction = alone(sample, sample.decode(sample.payload))
    body, content_type = sample.plugin.encode(prediction, accept)
    assert isinstance(body, bytes)
    assert body
    assert "/" in mediatypes.parse_header(content_type)[0]
    if content_type == "application/json":
        json.loads(body)


def zipped(payload: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("payload", payload)
    return archive.getvalue()


HOSTILE = {
    "empty": b"",
    "space": b" ",
    "newlines": b"\r\n" * 1000,
    "nulls": b"\x00" * 1000,
    "high bytes": b"\xff" * 1000,
    "byte order mark": b"\xef\xbb\xbf",
    "not UTF-8": b'{"columns": ["\xff\xfe"], "data": [[1]]}',
    "text": b"seven",
    "csv": b"pH,alcohol\n3,8.8\n",
    "html": b"<!doctype html><title>502 Bad Gateway</title>",
    "null": b"null",
    "true": b"true",
    "number": b"0",
    "huge number": b"9" * 100_000,
    "NaN": b"NaN",
    "infinity": b'{"columns": ["pH"], "data": [[Infinity]]}',
    "string": b'"PNG"',
    "list": b"[]",
    "object": b"{}",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"columns":' * 50_000,
    "balanced depth": b"[" * 50_000 + b"]" * 50_000,
    "no rows": b'{"columns": [], "data": []}',
    "null members": b'{"columns": null, "data": null}',
    "lone surrogate": b'{"columns": ["\\ud800"], "data": [[1]]}',
    "PNG signature": b"\x89PNG\r\n\x1a\n",
    "PNG header": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "JPEG signature": b"\xff\xd8\xff\xe0",
    "JPEG ends at once": b"\xff\xd8\xff\xd9",
    "GIF": picture("GIF"),
    "BMP": picture("BMP"),
    "TIFF": picture("TIFF"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n",
    "pickle": pickle.dumps({"columns": ["pH"], "data": [[1]]}),
    "script": b"#!/bin/sh\nexit 0\n",
}


def refuse(sample: Sample, payload: bytes) -> None:
    with pytest.raises(InvalidPayload) as refused:
        sample.decode(payload)
    reason = str(refused.value)
    assert reason
    assert len(reason) < 1000  # it goes into a problem's body and a log line
    assert str(ROOT) not in reason
    reason.encode()


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_refuses_hostile_payloads(sample: Sample, payload: bytes) -> None:
    refuse(sample, payload)


@pytest.mark.parametrize("wrap", [gzip.compress, zipped, lambda payload: b"\x00" + payload])
def test_refuses_its_payload_wrapped(sample: Sample, wrap: Any) -> None:
    refuse(sample, wrap(sample.payload))


@pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_refuses_its_payload_cut_short(sample: Sample, part: float) -> None:
    refuse(sample, sample.payload[: int(len(sample.payload) * part)])


def take_or_refuse(sample: Sample, payload: bytes) -> None:
    """What is damaged may still be readable; then it must also be predictable."""
    try:
        instance = sample.decode(payload)
    except InvalidPayload:
        return
    alone(sample, instance)


def test_takes_or_refuses_its_payload_cut_anywhere(sample: Sample) -> None:
    for length in range(len(sample.payload)):
        take_or_refuse(sample, sample.payload[:length])


# The sample is loaded once for all examples, and that takes its time.
often = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@often
@given(payload=st.binary(max_size=400))
def test_takes_or_refuses_any_bytes(sample: Sample, payload: bytes) -> None:
    take_or_refuse(sample, payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@often
@given(document=st.fixed_dictionaries({"columns": JSON, "data": JSON}))
def test_takes_or_refuses_any_json(sample: Sample, document: object) -> None:
    take_or_refuse(sample, json.dumps(document).encode())


@often
@given(data=st.data())
def test_takes_or_refuses_its_payload_with_bytes_changed(
    sample: Sample, data: st.DataObject
) -> None:
    payload = bytearray(sample.payload)
    at = st.integers(0, len(payload) - 1)
    for position in data.draw(st.lists(at, min_size=1, max_size=4)):
        payload[position] = data.draw(st.integers(0, 255))
    take_or_refuse(sample, bytes(payload))
