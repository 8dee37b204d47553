from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_scorer.plugins import InvalidPayload
from stream_scorer.plugins.tables import decode_json_rows, decode_split_json

COLUMNS = ("a", "b", "c")


def decode(columns: Any, data: Any, **rest: Any) -> list[list[float]]:
    payload = json.dumps({"columns": columns, "data": data, **rest}).encode()
    rows = decode_split_json(payload, COLUMNS, ignored=("label",))
    assert rows.dtype == np.float64
    assert rows.shape[1] == 3
    numbers: list[list[float]] = rows.tolist()
    return numbers


def reason(columns: Any, data: Any) -> str:
    with pytest.raises(InvalidPayload) as refused:
        decode(columns, data)
    return str(refused.value)


def test_rows_of_numbers() -> None:
    assert decode(["a", "b", "c"], [[1, 2.5, -3], [0, -0.0, 1e-300]]) == [
        [1.0, 2.5, -3.0],
        [0.0, 0.0, 1e-300],
    ]


def test_columns_in_any_order() -> None:
    assert decode(["c", "a", "b"], [[3, 1, 2], [6, 4, 5]]) == [[1, 2, 3], [4, 5, 6]]


def test_an_index_is_ignored() -> None:
    assert decode(["a", "b", "c"], [[1, 2, 3]], index=["first"]) == [[1, 2, 3]]


@pytest.mark.parametrize("label", [6, None, "good", [1], {"x": 1}, True, 1e300])
def test_ignored_columns_hold_anything(label: object) -> None:
    assert decode(["a", "label", "b", "c"], [[1, label, 2, 3]]) == [[1, 2, 3]]


def test_a_single_column() -> None:
    rows = decode_split_json(b'{"columns": ["a"], "data": [[1], [2]]}', ["a"])
    assert rows.tolist() == [[1], [2]]


def test_a_dataframe_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"b": [2, 5], "a": [1.5, 4.5], "c": [3, 6]}, index=["x", "y"])
    rows = decode_split_json(frame.to_json(orient="split").encode(), COLUMNS)
    assert rows.tolist() == [[1.5, 2, 3], [4.5, 5, 6]]


number = st.floats(-3e38, 3e38) | st.integers(-(2**63), 2**64 - 1)


@given(
    data=st.lists(st.lists(number, min_size=4, max_size=4), min_size=1, max_size=5),
    columns=st.permutations(["a", "b", "c", "label"]),
)
def test_any_numbers_in_any_order(data: list[list[float]], columns: list[str]) -> None:
    expected = [[float(row[columns.index(name)]) for name in COLUMNS] for row in data]
    assert decode(columns, data) == expected


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (["a", "b"], "missing columns: c"),
        ([], "missing columns: a, b, c"),
        (["A", "b", "c"], "missing columns: a"),
        (["a", "b", "c", "d"], "unknown columns: d"),
        (["a", "b", "c", "y", "x"], "unknown columns: x, y"),
        (["a", "b", "c", ""], "unknown columns: "),
        (["a", "b", "a", "c", "c"], "columns sent twice: a, c"),
        (["a", "label", "b", "label", "c"], "columns sent twice: label"),
    ],
)
def test_columns_that_do_not_fit_are_named(columns: list[str], text: str) -> None:
    assert reason(columns, [[0] * len(columns)]) == text


def test_columns_that_do_not_fit_are_named_each_time() -> None:
    assert reason(["a"], [[1]]) == reason(["a"], [[1]])


def test_what_is_quoted_stays_short() -> None:
    text = reason(["a", "b", "c", *(f"{number:03}" + "x" * 500 for number in range(50))], [[0]])
    assert text.startswith("unknown columns: 000xxx")
    assert text.endswith("… and 40 more")
    assert len(text) < 1000


def test_thousands_of_columns_sent_twice() -> None:
    # A check that looks through the list once for each name would take minutes here.
    assert reason(["a", "b"] + ["c"] * 200_000, [[0]]) == "columns sent twice: c"


@pytest.mark.parametrize("columns", ["abc", None, 3, {"a": 1}, ["a", "b", 3], ["a", ["b"], "c"]])
def test_columns_that_are_no_names(columns: object) -> None:
    assert reason(columns, [[1, 2, 3]]) == '"columns" must be a list of names'


@pytest.mark.parametrize("data", [[], {}, None, "rows", 3])
def test_no_rows(data: object) -> None:
    assert reason(["a", "b", "c"], data) == '"data" must be a list of rows, and hold at least one'


@pytest.mark.parametrize("row", [[], [1, 2], [1, 2, 3, 4], None, 3, "abc", {"a": 1}])
def test_rows_of_another_shape(row: object) -> None:
    assert reason(["a", "b", "c"], [[1, 2, 3], row]) == "row 1 is not a list of 3 values"


@pytest.mark.parametrize("value", [None, "1.5", "", True, False, [1], {"x": 1}])
def test_values_that_are_no_numbers(value: object) -> None:
    text = reason(["c", "a", "b"], [[1, 2, 3], [1, 2, value]])
    assert text == "row 1, column 'b': not a number"


@pytest.mark.parametrize("value", [1e39, -1e39, 1e300, 2**200])
def test_numbers_that_float32_cannot_hold(value: float) -> None:
    text = reason(["a", "b", "c"], [[1, 2, 3], [1, value, 3]])
    assert text == "row 1, column 'b': the number is too large"


def test_large_numbers_that_float32_can_hold() -> None:
    largest = float(np.finfo(np.float32).max)
    rows = decode(["a", "b", "c"], [[largest, -largest, largest]])
    assert rows == [[largest, -largest, largest]]
    with np.errstate(over="raise"):
        assert np.isfinite(np.array(rows).astype(np.float32)).all()


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "01", "1_0"])
def test_numbers_that_json_does_not_have(text: str) -> None:
    payload = f'{{"columns": ["a", "b", "c"], "data": [[1, 2, {text}]]}}'.encode()
    with pytest.raises(InvalidPayload, match="the payload is not JSON: "):
        decode_split_json(payload, COLUMNS)


@pytest.mark.parametrize("payload", [b"[]", b"3", b"null", b'"a"', b"{}", b'{"data": []}'])
def test_json_of_another_shape(payload: bytes) -> None:
    with pytest.raises(InvalidPayload, match="pandas-split"):
        decode_split_json(payload, COLUMNS)


def test_ignored_values_do_not_hide_bad_ones() -> None:
    text = reason(["a", "label", "b", "c"], [[1, None, 2, 3], [1, 2, None, 3]])
    assert text == "row 1, column 'b': not a number"


def test_nothing_decoded_is_infinite() -> None:
    rows = decode(["a", "b", "c"], [[3.4e38] * 3] * 100)
    assert all(math.isfinite(value) for row in rows for value in row)


def test_what_is_deep_beside_the_table_is_refused_or_left_out() -> None:
    deep = b"[" * 5_000 + b"]" * 5_000
    payload = b'{"index": %b, "columns": ["a"], "data": [[1]]}' % deep
    with pytest.raises(InvalidPayload, match="not JSON"):
        decode_split_json(payload, ("a",))


def test_text_in_a_column_that_is_not_needed_is_left_out() -> None:
    payload = b'{"columns": ["id", "b", "a"], "data": [["x", 2, 1], ["y", 4.5, true]]}'
    with pytest.raises(InvalidPayload, match="row 1, column 'a': not a number"):
        decode_split_json(payload, ("a", "b"), ignored=("id",))
    found = decode_split_json(payload.replace(b"true", b"3"), ("a", "b"), ignored=("id",))
    assert found.tolist() == [[1, 2], [3, 4.5]]


# Lists of rows.


def rows_of(payload: bytes) -> list[list[float]]:
    numbers: list[list[float]] = decode_json_rows(payload, COLUMNS, ignored=("label",)).tolist()
    return numbers


def refusal(payload: bytes) -> str:
    with pytest.raises(InvalidPayload) as refused:
        rows_of(payload)
    assert len(str(refused.value)) < 1000
    return str(refused.value)


@pytest.mark.parametrize(
    "payload",
    [
        b"[[1, 2.5, -3]]",
        b'[{"a": 1, "b": 2.5, "c": -3}]',
        b' [ {"c": -3, "label": {"x": [":"]}, "a": 1, "b": 2.5} ] ',
    ],
)
def test_lists_of_rows(payload: bytes) -> None:
    assert rows_of(payload) == [[1, 2.5, -3]]


def test_each_object_has_its_own_order_and_may_leave_out_what_is_ignored() -> None:
    payload = (
        b'[{"a":1,"b":2,"c":3},{"c":6,"b":5,"a":4,"label":null},{"label":":","b":8,"a":7,"c":9}]'
    )
    assert rows_of(payload) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@given(
    data=st.lists(st.lists(number, min_size=3, max_size=3), min_size=1, max_size=5),
    columns=st.permutations(COLUMNS),
)
def test_any_numbers_in_lists(data: list[list[float]], columns: list[str]) -> None:
    expected = [[float(value) for value in row] for row in data]
    objects = [{name: row[COLUMNS.index(name)] for name in columns} for row in data]
    assert rows_of(json.dumps(data).encode()) == expected
    assert rows_of(json.dumps(objects).encode()) == expected


anything = st.recursive(
    st.none() | st.booleans() | number | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*COLUMNS, "label", ":"]), inner)
    ),
)


@given(payload=st.binary(max_size=100) | anything.map(lambda each: json.dumps(each).encode()))
def test_anything_is_taken_or_refused(payload: bytes) -> None:
    for sent in (payload, b"[" + payload + b"]"):
        try:
            rows = decode_json_rows(sent, COLUMNS, ignored=("label",))
        except InvalidPayload:
            continue
        assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        *((b"[]", "expected a JSON list of rows"), (b"{}", "expected a JSON list of rows")),
        *((b"[{}]", "row 0: missing columns: a, b, c"), (b"[[]]", "row 0 is not a list of 3")),
        *((b"null", "expected a JSON list of rows"), (b"", "the payload is not JSON")),
        *((b"[1, 2, 3]", "row 0 is not a list"), (b'["abc"]', "row 0 is not a list")),
        (b"[[1, 2]]", "row 0 is not a list of 3 values"),
        (b'[[1, 2, 3], {"a": 1, "b": 2, "c": 3}]', "row 1 is not a list of 3 values"),
        (b'[{"a": 1, "b": 2, "c": 3}, [1, 2, 3]]', "row 1 is not an object"),
        (b'[{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2}]', "row 1: missing columns: c"),
        (b'[{"a": 1, "b": 2, "c": 3, "d": 4}]', "row 0: unknown columns: d"),
        (b'[{"a": 1, "b": 2, "c": 3, "a": 1}]', "columns sent twice: a"),
        (b'[{"a":1,"b":2,"c":3},{"a":1,"b":2,"c":3,"label":0,"label":1}]', "columns sent twice: l"),
        (b'[{"a": 1, "b": 2, "c": ' + b"9" * 5_000 + b', "c": 3}]', "the payload is not JSON"),
        (b'[{"a": 1, "b": "2", "c": 3}]', "row 0, column 'b': not a number"),
        (b'[{"a": 1, "b": true, "c": 3}]', "row 0, column 'b': not a number"),
        (b"[[1, 2, null]]", "row 0, column 'c': not a number"),
        (b"[[1, 2, 1e39]]", "row 0, column 'c': the number is too large"),
        *((b"[[1, 2, NaN]]", "the payload is not JSON"), (b"[[1, 2, 1e999]]", "the payload is n")),
        *((b"[" * 100_000, "the payload is not JSON"), (b"[[1,2,3]]\x00", "the payload is not J")),
        (b"\xef\xbb\xbf[[1,2,3]]", "the payload is not JSON"),
        (b'[{"a":1,"b":2,"c":3,"label":' + b"[" * 1010 + b'":"' + b"]" * 1010 + b"}]", "the payl"),
    ],
)
def test_lists_that_are_no_tables_are_refused_with_the_reason(payload: bytes, why: str) -> None:
    assert refusal(payload).startswith(why)
