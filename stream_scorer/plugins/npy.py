"""Arrays in NumPy's ``.npy`` format: refused before anything is unpacked, and written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stream_scorer.plugins.columns import LARGEST
from stream_scorer.plugins.plugin import InvalidPayload

NPY: Final = "application/x-npy"

_MAGIC: Final = b"\x93NUMPY"
_LENGTH_BYTES: Final = {1: 2, 2: 4, 3: 4}
"""How long the header's length is written, by the format's version."""

_LONGEST_HEADER: Final = 10_000
_MOST_DIMENSIONS: Final = 32

# Plain numbers and truth values. Others hold pickles (O), text, dates or fields of their own.
_TYPE: Final = re.compile(r"[<>|](b1|[iu][1248]|f[248])")

# NumPy's own reader evaluates the header as a Python literal, which costs as much memory and stack
# as its writer likes. Here each of the three entries is matched as every writer has them.
_ENTRY: Final = (
    r"""['"](?:descr|fortran_order|shape)['"]\s*:\s*(?:['"][^'"]*['"]|True|False|\([\d,\s]*\))"""
)
_HEADER: Final = re.compile(rf"\s*\{{\s*{_ENTRY}\s*,\s*{_ENTRY}\s*,\s*{_ENTRY}(?:\s*,)?\s*\}}\s*")
_DESCR: Final = re.compile(r"""['"]descr['"]\s*:\s*['"]([^'"]*)['"]""")
_FORTRAN_ORDER: Final = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE: Final = re.compile(r"""['"]shape['"]\s*:\s*\(([\d,\s]*)\)""")
_SIZES: Final = re.compile(r"(?:\d{1,18},)*(?:\d{1,18})?")


def decode_npy(
    payload: bytes,
    *,
    shape: Sequence[int | None] | None = None,
    dtype: DTypeLike | None = None,
    finite: bool = True,
    max_elements: int = 10_000_000,
) -> NDArray[Any]:
    """Read what ``numpy.save`` writes of an array of numbers or truth values; never a pickle.

    Args:
        payload: the file's bytes.
        shape: the shape it must have, ``None`` where a dimension may have any size; ``None`` takes
            all shapes.
        dtype: the type to convert to: of integers all, of floats only floats; ``None`` leaves the
            type as sent.
        finite: refuse NaN, infinities, and numbers that float32 cannot hold.
        max_elements: the most elements to take.

    Returns:
        A writable array of its own memory, in C order and in the machine's byte order, with at
        least one element.

    Raises:
        InvalidPayload: not such a file, cut short or too long, or of another type or shape.
    """
    header, start = _header(payload)
    descr, fortran_order, sizes = _entries(header)
    if (kind := _TYPE.fullmatch(descr)) is None:
        raise InvalidPayload(f"arrays of the type {descr[:20]!r} are not taken")
    count = prod(sizes)
    if count > max_elements:
        raise InvalidPayload(f"the array has more than {max_elements} elements")
    if not count:
        raise InvalidPayload("the array is empty")
    sent = np.dtype("u1" if kind[1] == "b1" else descr)
    if len(payload) - start != count * sent.itemsize:
        raise InvalidPayload(
            f"the array's header announces {count * sent.itemsize} bytes, but there are "
            f"{len(payload) - start}"
        )
    if shape is not None and not _fits(sizes, shape):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InvalidPayload(f"the array's shape is {sizes}, not ({wanted})")
    found: NDArray[Any] = np.frombuffer(payload, sent, offset=start)
    found = found.reshape(sizes, order="F" if fortran_order else "C")
    # A truth value is a byte in the file, but an array of them may hold nothing but 0 and 1.
    native = found != 0 if kind[1] == "b1" else found.astype(sent.newbyteorder("="), order="C")
    return _converted(np.ascontiguousarray(native).reshape(sizes), dtype, finite=finite)


def _header(payload: bytes) -> tuple[str, int]:
    """The header's text, and where the data start."""
    version = payload[6:8]
    if not payload.startswith(_MAGIC) or len(version) < 2 or version[0] not in _LENGTH_BYTES:
        raise InvalidPayload("the payload is not an array in .npy format")
    begin = 8 + _LENGTH_BYTES[version[0]]
    length = int.from_bytes(payload[8:begin], "little")
    if length > _LONGEST_HEADER:
        raise InvalidPayload(f"the array's header is longer than {_LONGEST_HEADER} bytes")
    if len(payload) < begin + length:
        raise InvalidPayload("the array's header is cut short")
    return payload[begin : begin + length].decode("latin-1"), begin + length


def _entries(header: str) -> tuple[str, bool, tuple[int, ...]]:
    """The type, whether it is in Fortran's order, and the shape."""
    descr, fortran_order, shape = (p.search(header) for p in (_DESCR, _FORTRAN_ORDER, _SHAPE))
    if not (_HEADER.fullmatch(header) and descr and fortran_order and shape):
        raise InvalidPayload("the array's header is not one of numbers or truth values")
    text = "".join(shape[1].split())
    sizes = text.rstrip(",").split(",") if text else []
    if not _SIZES.fullmatch(text) or len(sizes) > _MOST_DIMENSIONS:
        raise InvalidPayload("the array's shape cannot be read")
    return descr[1], fortran_order[1] == "True", tuple(map(int, sizes))


def _fits(sizes: Sequence[int], shape: Sequence[int | None]) -> bool:
    return len(sizes) == len(shape) and all(
        wanted in {None, size} for size, wanted in zip(sizes, shape, strict=True)
    )


def _converted(found: NDArray[Any], dtype: DTypeLike | None, *, finite: bool) -> NDArray[Any]:
    wanted = found.dtype if dtype is None else np.dtype(dtype)
    if not np.can_cast(found.dtype, wanted, "same_kind"):
        raise InvalidPayload(f"the array is of {found.dtype}, not {wanted}")
    with np.errstate(over="ignore"):
        converted = found.astype(wanted, copy=False)
    if finite and wanted.kind == "f":
        # Put so that NaN, which is neither smaller nor larger, is refused too.
        if not (np.abs(converted) <= min(LARGEST, float(np.finfo(wanted).max))).all():
            raise InvalidPayload("the array holds NaN, an infinity or a number that is too large")
    elif wanted.kind in "iu" and not (converted == found).all():
        raise InvalidPayload(f"the array holds numbers that {wanted} cannot hold")
    return converted


def encode_npy(values: Any) -> bytes:
    """Write an array, or what NumPy makes one of, as ``numpy.save`` does.

    Raises:
        ValueError: it holds other things than numbers, truth values and text.
    """
    file = BytesIO()
    np.save(file, np.asarray(values), allow_pickle=False)
    return file.getvalue()
