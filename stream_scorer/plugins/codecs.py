"""Plugins that lack only ``predict``: each states what it takes, and decodes it.

An instance of each is an array whose first dimension is its rows, so that ``rows.predict_rows`` can
predict many as one.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from typing import Any, ClassVar, Final, Literal

import numpy as np
import orjson
from numpy.typing import DTypeLike, NDArray

from stream_scorer import media_types
from stream_scorer.plugins.csv_tables import decode_csv, encode_csv
from stream_scorer.plugins.images import decode_image, greyscale, rgb
from stream_scorer.plugins.npy import NPY, decode_npy, encode_npy
from stream_scorer.plugins.plugin import InstanceT, ModelT, Plugin, PredictionT
from stream_scorer.plugins.tables import decode_json_rows, decode_split_json

JSON: Final = "application/json"
CSV: Final = "text/csv"

IMAGE_FORMATS: Final = {
    "image/bmp": "BMP",
    "image/gif": "GIF",
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/tiff": "TIFF",
    "image/webp": "WEBP",
}
"""Pillow's names of the formats that images are taken in."""


def encode_array(values: Any, accept: str | None) -> tuple[bytes, str]:
    """Write predictions as the caller would like them: JSON, else CSV or ``.npy``.

    Args:
        values: an array, or what NumPy makes one of.
        accept: the ``accept`` header. JSON is written where there is none, where it names none of
            the three, and where the values cannot be written as it says.
    """
    wanted = media_types.preferred((JSON, CSV, NPY), accept)
    with suppress(ValueError):
        if wanted == CSV:
            return encode_csv(values), CSV
        if wanted == NPY:
            return encode_npy(values), NPY
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY), JSON


class _ArrayPlugin(Plugin[ModelT, InstanceT, PredictionT]):
    def encode(self, prediction: PredictionT, accept: str | None) -> tuple[bytes, str]:
        """JSON, or CSV or ``.npy`` where the caller asks for it."""
        return encode_array(prediction, accept)


class TablePlugin(_ArrayPlugin[ModelT, NDArray[np.float64], PredictionT]):
    """Takes tables of named numbers in JSON (``{"columns": …, "data": …}`` or a list) or CSV."""

    content_types: ClassVar[tuple[str, ...]] = (JSON, CSV)

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The names the model needs, in its order; a class sets them as an attribute."""

    ignored: ClassVar[tuple[str, ...]] = ()
    """Names that may be sent and are left out, such as that of the value to predict."""

    def decode(self, payload: bytes, content_type: str) -> NDArray[np.float64]:
        """An array of shape (rows, columns)."""
        if media_types.accepts((CSV,), content_type):
            return decode_csv(payload, self.columns, ignored=self.ignored)
        if payload.lstrip()[:1] == b"[":
            return decode_json_rows(payload, self.columns, ignored=self.ignored)
        return decode_split_json(payload, self.columns, ignored=self.ignored)


class ImagePlugin(_ArrayPlugin[ModelT, NDArray[np.uint8], PredictionT]):
    """Takes images of any size and colours; only of the formats that ``content_types`` names."""

    content_types: ClassVar[tuple[str, ...]] = ("image/png", "image/jpeg")

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """The width and height the model needs; a class sets them as an attribute."""

    mode: ClassVar[Literal["L", "RGB"]] = "RGB"
    """Greyscale or colours, as Pillow calls them."""

    def decode(self, payload: bytes, content_type: str) -> NDArray[np.uint8]:
        """An array of shape (1, height, width), of colours (1, height, width, 3)."""
        # What counts is what the payload is, which senders do not always tell right.
        formats = [
            form
            for media_type, form in IMAGE_FORMATS.items()
            if media_types.accepts(self.content_types, media_type)
        ]
        image = decode_image(payload, formats=formats, max_pixels=self.image_pixels)
        convert = greyscale if self.mode == "L" else rgb
        return convert(image, *self.size)[np.newaxis]


class NpyPlugin(_ArrayPlugin[ModelT, NDArray[Any], PredictionT]):
    """Takes arrays of numbers or truth values as ``numpy.save`` writes them."""

    content_types: ClassVar[tuple[str, ...]] = (NPY,)

    shape: ClassVar[tuple[int | None, ...] | None] = None
    """The shape that payloads must have, ``None`` where any size will do: ``(None, 28, 28)``."""

    dtype: ClassVar[DTypeLike | None] = None
    """The type that the model needs; ``None`` takes each as it is sent."""

    def decode(self, payload: bytes, content_type: str) -> NDArray[Any]:
        """An array of that shape and type."""
        return decode_npy(payload, shape=self.shape, dtype=self.dtype)


class BytesPlugin(Plugin[ModelT, bytes, PredictionT]):
    """Takes any bytes, for models that read them themselves."""

    content_types: ClassVar[tuple[str, ...]] = ("application/octet-stream",)

    def decode(self, payload: bytes, content_type: str) -> bytes:
        """The payload as it is."""
        return payload
