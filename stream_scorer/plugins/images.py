"""Images: opened safely, refused before they are unpacked."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stream_scorer.plugins.plugin import InvalidPayload

if TYPE_CHECKING:
    from PIL.Image import Image


def decode_image(payload: bytes, *, formats: Sequence[str], max_pixels: int) -> Image:
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
    from PIL import Image as image

    try:
        with warnings.catch_warnings():
            # Pillow warns of its own, larger limit here; ours is checked below.
            warnings.simplefilter("ignore", image.DecompressionBombWarning)
            opened = image.open(io.BytesIO(payload), formats=formats)
    except image.DecompressionBombError:
        raise InvalidPayload(f"the image has more than {max_pixels} pixels") from None
    except (image.UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise InvalidPayload(f"not an image of the formats {', '.join(formats)}") from None
    width, height = opened.size
    if width * height > max_pixels:
        raise InvalidPayload(f"the image has {width} x {height} pixels, more than {max_pixels}")
    try:
        opened.load()
    except (OSError, ValueError, SyntaxError, EOFError):
        raise InvalidPayload("the image is damaged: it cannot be unpacked") from None
    return opened
