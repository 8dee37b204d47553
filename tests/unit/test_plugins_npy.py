from __future__ import annotations

import io
import pickle
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.format import write_array
from numpy.typing import NDArray

from stream_scorer.plugins import InvalidPayload
from stream_scorer.plugins.npy import decode_npy, encode_npy

DIGITS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def saved(array: NDArray[Any], version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    write_array(file, array, version=version)
    return file.getvalue()


def file(header: str | bytes, data: bytes = b"", version: int = 1) -> bytes:
    """A file of a header that NumPy would not write."""
    text = header.encode() if isinstance(header, str) else header
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def header(descr: str = "'<f8'", order: str = "False", shape: str = "(1,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def reason(payload: bytes, **asked: Any) -> str:
    with pytest.raises(InvalidPayload) as refused:
        decode_npy(payload, **asked)
    assert len(str(refused.value)) < 500
    return str(refused.value)


TYPES = [
    *("bool", "int8", "uint8", "<i2", ">i2", "<u4", ">u4", "<i8", ">i8"),
    *("<f2", ">f2", "<f4", ">f4", "<f8", ">f8"),
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_as_numpy_saves_them(
    dtype: str, order: str, shape: tuple[int, ...], version: tuple[int, int]
) -> None:
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape) % 2, dtype)
    found = decode_npy(saved(np.asarray(array, order=order), version))  # type: ignore[call-overload]
    np.testing.assert_array_equal(found, array)
    assert found.shape == shape
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.flags.writeable


@given(values=st.lists(st.floats(-3e38, 3e38), min_size=1), swapped=st.booleans())
def test_what_is_written_is_read_again(values: list[float], swapped: bool) -> None:
    sent = np.array(values, ">f8" if swapped else "<f8")
    assert decode_npy(encode_npy(sent)).tolist() == values
    assert decode_npy(encode_npy(values)).tolist() == values


# Numbers, a start that is right and then anything, and a file with bytes changed.
damaged = st.tuples(
    st.just(saved(DIGITS)), st.lists(st.tuples(st.integers(0, 139), st.integers(0, 255)))
).map(lambda drawn: bytes(dict(drawn[1]).get(at, byte) for at, byte in enumerate(drawn[0])))


@given(
    payload=st.binary(max_size=300)
    | st.binary(max_size=300).map(lambda rest: b"\x93NUMPY\x01\x00" + rest)
    | st.text(alphabet="{}'\"(), :0123456789descrfotn_hapTueFl<>|i", max_size=200).map(file)
    | damaged
)
def test_any_bytes_are_taken_or_refused(payload: bytes) -> None:
    try:
        found = decode_npy(payload)
    except InvalidPayload:
        return
    assert found.nbytes <= len(payload)


@pytest.mark.parametrize("length", range(len(saved(DIGITS))))
def test_a_file_cut_short_is_refused(length: int) -> None:
    reason(saved(DIGITS)[:length])


@pytest.mark.parametrize(
    "text",
    [
        "{'shape':(1,),'fortran_order':False,'descr':'<f8'}",
        '{"descr": "<f8", "fortran_order": False, "shape": (1,)}\n',
        "{'descr': '<f8', 'fortran_order': True, 'shape': ( 1 , ), }" + " " * 60 + "\n",
    ],
)
def test_headers_as_other_writers_have_them(text: str) -> None:
    assert decode_npy(file(text, np.array([2.5]).tobytes())).tolist() == [2.5]


def test_80_gb_that_are_not_there_take_no_memory() -> None:
    payload = file(header(shape="(10000000000,)"), b"\x00" * 100)
    tracemalloc.start()
    try:
        assert reason(payload) == "the array has more than 10000000 elements"
        assert "announces 80000000000 bytes, but there are 100" in reason(
            payload, max_elements=10**12
        )
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        *((b"", "not an array in .npy"), (b"\x93NUMPY", "not an array in .npy")),
        *((b"PK\x03\x04", "not an array in .npy"), (pickle.dumps([1]), "not an array in .npy")),
        (file(header(), b"\x00" * 8, version=4), "not an array in .npy"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "header is longer than 10000 bytes"),
        (file(header() + " " * 10_000, b"\x00" * 8), "header is longer than 10000 bytes"),
        (b"\x93NUMPY\x01\x00\xff\x00{", "header is cut short"),
        (file("[" * 9_000), "not one of numbers"),
        (file("-" * 9_000 + "1"), "not one of numbers"),
        (file(" " * 9_000 + "x"), "not one of numbers"),
        (file("{'descr': '<f8'" + " " * 9_000), "not one of numbers"),
        (file("{'shape': (1,), 'shape': (1,), 'shape': (1,)}"), "not one of numbers"),
        (file(b"\xff\xfe\x00"), "not one of numbers"),
        (file(header("[('a', '<f8')]"), b"\x00" * 8), "not one of numbers"),
        (file(header(shape="(1 for _ in ())"), b"\x00" * 8), "not one of numbers"),
        (file(header(shape="(-1,)"), b"\x00" * 8), "not one of numbers"),
        (file(header(shape="(1,,2)"), b"\x00" * 8), "shape cannot be read"),
        (file(header(shape="(" + "9" * 5_000 + ",)")), "shape cannot be read"),
        (file(header(shape="(" + "1," * 33 + ")"), b"\x00" * 8), "shape cannot be read"),
        (file(header(shape="(" + "9" * 18 + ",)")), "more than 10000000 elements"),
        (file(header(shape="(0,)")), "the array is empty"),
        (file(header(), b"\x00" * 7), "announces 8 bytes, but there are 7"),
        (file(header(), b"\x00" * 9), "announces 8 bytes, but there are 9"),
        *(
            (file(header(f"'{descr}'"), b"\x00" * 16), f"arrays of the type '{descr}'")
            for descr in ("|O", "<c16", "<f16", "<m8", "<M8[s]", "|S8", "<U2", "|V8", "<i3", "=f8")
        ),
        (file(header("'" + "x" * 9_000 + "'")), "arrays of the type 'xxxxxxxxxxxxxxxxxxxx'"),
    ],
)
def test_what_is_no_such_file_is_refused_with_the_reason(payload: bytes, why: str) -> None:
    assert why in reason(payload)


def test_an_array_of_objects_is_not_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return pytest.fail, ("unpickled",)

    assert "type '|O'" in reason(saved(np.array([Trap()], dtype=object)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e39])
def test_numbers_that_are_not_finite(value: float) -> None:
    payload = saved(np.array([1, value]))
    assert "NaN, an infinity or a number that is too large" in reason(payload)
    np.testing.assert_array_equal(decode_npy(payload, finite=False), [1, value])


def test_truth_values_are_0_or_1_whatever_the_bytes() -> None:
    found = decode_npy(file(header("'|b1'", shape="(3,)"), b"\x00\x01\x02"))
    assert found.view(np.uint8).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        *(((3, 4), True), ((None, 4), True), ((None, None), True)),
        *(((4, 3), False), ((None,), False), ((None, 4, 1), False), ((12,), False)),
    ],
)
def test_the_shape_that_is_asked_for(shape: Sequence[int | None], fits: bool) -> None:
    if fits:
        assert decode_npy(saved(DIGITS), shape=shape).shape == (3, 4)
    else:
        assert "the array's shape is (3, 4), not (" in reason(saved(DIGITS), shape=shape)


@pytest.mark.parametrize(
    ("sent", "dtype", "why"),
    [
        ([1, 2], "float32", None),
        ([1.5], "float32", None),
        ([True], "float64", None),
        ([1, 127], "int8", None),
        ([1.0], "int64", "the array is of float64, not int64"),
        ([1.5], "bool", "the array is of float64, not bool"),
        ([2], "bool", "the array is of int64, not bool"),
        ([-1, 128], "int8", "the array holds numbers that int8 cannot hold"),
        ([70_000.0], "float16", "too large"),
        ([70_000], "float16", "too large"),
    ],
)
def test_the_type_that_is_asked_for(sent: list[float], dtype: str, why: str | None) -> None:
    if why is None:
        found = decode_npy(saved(np.array(sent)), dtype=dtype)
        assert (found.dtype, found.tolist()) == (np.dtype(dtype), sent)
    else:
        assert why in reason(saved(np.array(sent)), dtype=dtype)


def test_unsigned_numbers_beyond_the_signed_ones() -> None:
    assert "int64 cannot hold" in reason(saved(np.array([2**63], np.uint64)), dtype=np.int64)


def test_more_elements_than_asked_for() -> None:
    assert decode_npy(saved(DIGITS), max_elements=12).size == 12
    assert reason(saved(DIGITS), max_elements=11) == "the array has more than 11 elements"


def test_objects_are_not_written() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        encode_npy(np.array([{}], dtype=object))
