from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_scorer.plugins import InvalidPayload
from stream_scorer.plugins.csv_tables import decode_csv, encode_csv

COLUMNS = ("a", "b")


def decode(text: str | bytes) -> list[list[float]]:
    payload = text if isinstance(text, bytes) else text.encode()
    rows = decode_csv(payload, COLUMNS, ignored=("label",), max_rows=5)
    assert rows.dtype == np.float64
    numbers: list[list[float]] = rows.tolist()
    return numbers


def reason(text: str | bytes) -> str:
    with pytest.raises(InvalidPayload) as refused:
        decode(text)
    return str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        *("a,b\n1,2.5\n-3,1e3\n", "a,b\r\n1,2.5\r\n-3,1e3", "a,b\r1,2.5\r-3,1e3\r"),
        *("b,a\n2.5,1\n1e3,-3\n", '"a","b"\n"1","2.5"\n"-3","1e3"\n', "a,b\n 1 ,\t2.5\n-3,+1E3"),
        *("a,label,b\n1,good,2.5\n-3,,1e3\n", 'a,b,label\n1,2.5,"x\ny,z"\n-3,1e3,"""\x00"\n'),
        "\ufeffa,b\n1,2.5\n-3,1e3\n",
    ],
)
def test_rows_of_numbers_however_they_are_written(text: str) -> None:
    assert decode(text) == [[1, 2.5], [-3, 1000]]


number = st.floats(-3e38, 3e38) | st.integers(-(2**64), 2**64)


@given(
    data=st.lists(st.lists(number, min_size=3, max_size=3), min_size=1, max_size=5),
    columns=st.permutations(["a", "b", "label"]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_any_numbers_in_any_order(
    data: list[list[float]], columns: list[str], line_end: str
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end).writerows([columns, *data])
    expected = [[float(row[columns.index(name)]) for name in COLUMNS] for row in data]
    assert decode(text.getvalue()) == expected


@given(payload=st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(payload: bytes) -> None:
    for sent in (payload, b"a,b\n" + payload, b"a,b\n1,2\n" + payload):
        try:
            rows = decode_csv(sent, COLUMNS)
        except InvalidPayload:
            continue
        assert np.isfinite(rows).all()


@given(payload=st.text(alphabet='ab,12.eE-+_ "\r\n\x00\ufeff\u0661\u0662naif', max_size=60))
def test_any_text_is_taken_or_refused(payload: str) -> None:
    for sent in (payload, "a,b\n" + payload):
        try:
            rows = decode_csv(sent.encode(), COLUMNS)
        except InvalidPayload:
            continue
        assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(("", "missing columns: a, b"), ("\n\n", "missing columns: a, b")),
        *(("1,2\n3,4", "missing columns: a, b"), ("a\n1", "missing columns: b")),
        *(("a,b,c\n1,2,3", "unknown columns: c"), ("a, b\n1,2", "missing columns: b")),
        ("a,b,a\n1,2,3", "columns sent twice: a"),
        *(("a,b", "there are no rows"), ("a,b\r\n", "there are no rows")),
        ("a,b\n1,2\n3", "row 1 does not have 2 values, but 1"),
        ("a,b\n1,2,3\n", "row 0 does not have 2 values, but 3"),
        ("a,b\n1,2\n\n", "row 1 does not have 2 values, but 0"),
        ("a;b\n1;2", "missing columns: a, b"),
        ('a,b\n1,"2', "the payload is not CSV: line 2: unexpected end of data"),
        ('a,b\n1,"2"3', "the payload is not CSV: line 2"),
        ("a,b\n1," + "9" * 200_000, "the payload is not CSV: line 2: field larger"),
        ("a,b\n" + "1,2\n" * 6, "there are more than 5 rows"),
        (b"a,b\n1,\xff", "the payload is not UTF-8: invalid start byte"),
        ("a,b\n1,2".encode("utf-16"), "the payload is not UTF-8"),
    ],
)
def test_what_is_no_such_table_is_refused_with_the_reason(text: str | bytes, why: str) -> None:
    assert reason(text).startswith(why)


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "x", "nan", "NaN", "inf", "-Infinity", "null", "True", "1_000", "0x1f", "1,5"),
        *("\u0661", "1 2", "1\x00", "--1", "1e", "1d", "½", "1\u00a0"),
    ],
)
def test_values_that_are_no_numbers(value: str) -> None:
    assert reason(f'a,b\n1,2\n3,"{value}"') == "row 1, column 'b': not a number"


@pytest.mark.parametrize("value", ["1e39", "-1e39", "1e999", "9" * 400, "9" * 100_000])
def test_numbers_that_float32_cannot_hold(value: str) -> None:
    assert reason(f"a,b\n{value},2") == "row 0, column 'a': the number is too large"


def test_what_is_quoted_stays_short() -> None:
    assert len(reason(",".join(f"{number:03}" + "x" * 500 for number in range(50)))) < 1000
    many = "a,b," + ",".join(map(str, range(100_000)))
    assert len(reason(f"{many}\n1,2")) < 1000


@pytest.mark.parametrize(
    ("values", "columns", "text"),
    [
        ([1.5, 2], None, "prediction\r\n1.5\r\n2.0\r\n"),
        ([[1, 2], [3, 4]], None, "prediction 0,prediction 1\r\n1,2\r\n3,4\r\n"),
        ([[1, 2]], ["low", "high"], "low,high\r\n1,2\r\n"),
        (["red", "a,b"], ["colour"], 'colour\r\nred\r\n"a,b"\r\n'),
        ([[math.nan, math.inf]], None, "prediction 0,prediction 1\r\n,\r\n"),
        ([], None, "prediction\r\n"),
    ],
)
def test_predictions_are_written(values: object, columns: list[str] | None, text: str) -> None:
    assert encode_csv(values, columns) == text.encode()


@pytest.mark.parametrize(
    ("values", "columns"),
    [([[[1]]], None), (3, None), ([1], ["a", "b"]), ([[1, 2], [3]], None), ([None], None)],
)
def test_what_is_no_table_is_not_written(values: object, columns: list[str] | None) -> None:
    with pytest.raises(ValueError, match=r"dimension|names|shape|object"):
        encode_csv(values, columns)


@given(data=st.lists(st.lists(number.map(float), min_size=2, max_size=2), min_size=1, max_size=5))
def test_what_is_written_is_read_again(data: list[list[float]]) -> None:
    assert decode_csv(encode_csv(data, COLUMNS), COLUMNS).tolist() == data
