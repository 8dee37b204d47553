"""Images: opened safely, refused before they are unpacked, and brought to a model's size."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from stream_scorer.plugins.plugin import InvalidPayload

_UNREADABLE: Final = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError),
    *(EOFError, struct.error, zlib.error),
)
"""What Pillow raises on hostile bytes: its readers share no error of their own."""


def decode_image(payload: bytes, *, formats: Sequence[str], max_pixels: int) -> Image.Image:
    """Open and unpack one image.

    The size is read from the file's header and checked first: a file of 20 KB can unpack to
    500 MB.

    Args:
        payload: the file's bytes.
        formats: Pillow's names of the formats to take, such as ``("PNG", "JPEG")``; nothing else
            is tried.
        max_pixels: the most pixels (width x height) to unpack.

    Raises:
        InvalidPayload: not an image of these formats, too large, or damaged.
    """
    with warnings.catch_warnings():
        # Pillow warns of its own limit of pixels, where ours is checked below, and of each oddity
        # of a file that it can still read: a sender could fill the log with those.
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(io.BytesIO(payload), formats=tuple(formats))
        except Image.DecompressionBombError:
            raise InvalidPayload("the image has too many pixels to be unpacked") from None
        except _UNREADABLE:
            raise InvalidPayload(f"not an image of the formats {', '.join(formats)}") from None
        width, height = opened.size
        if width * height > max_pixels:
            raise InvalidPayload(f"the image has {width} x {height} pixels, more than {max_pixels}")
        try:
            opened.load()
        except _UNREADABLE:
            raise InvalidPayload("the image is damaged: it cannot be unpacked") from None
    return opened


def greyscale(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """Turn an image of any mode and size into a greyscale one of a fixed size.

    Colours become their luminance, 16 bits become 8, and what is transparent becomes black. An
    image of another size is stretched to fit; its proportions are not kept.

    Returns:
        An array of shape (height, width), from 0 for black to 255 for white.

    Raises:
        InvalidPayload: the image is damaged: its pixels name colours that it does not have.
    """
    return _resized(image, _luminance, width, height)


def rgb(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """Turn an image of any mode and size into one of red, green and blue of a fixed size.

    What is grey becomes three equal colours; for the rest see ``greyscale``.

    Returns:
        An array of shape (height, width, 3), each from 0 to 255.

    Raises:
        InvalidPayload: the image is damaged: its pixels name colours that it does not have.
    """
    return _resized(image, _colours, width, height)


def _resized(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image], width: int, height: int
) -> NDArray[np.uint8]:
    try:
        converted = convert(image)
    except _UNREADABLE:
        raise InvalidPayload("the image is damaged: its colours cannot be read") from None
    if converted.size != (width, height):
        converted = converted.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(converted)


def _colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _luminance(image).convert("RGB")
    if image.has_transparency_data:
        paint = image.convert("RGBA")
        opacity = paint.getchannel("A")
        return ImageChops.multiply(paint.convert("RGB"), Image.merge("RGB", [opacity] * 3))
    return image.convert("RGB")


def _luminance(image: Image.Image) -> Image.Image:
    if image.mode == "L" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255 instead of scaling down.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        ink = image.convert("LA")
        return ImageChops.multiply(ink.getchannel("L"), ink.getchannel("A"))
    return image.convert("L")
