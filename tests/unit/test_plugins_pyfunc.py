"""Any MLflow model, with MLflow's own payloads: what is read, joined, predicted and answered."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.types import Schema, TensorSpec

from stream_scorer.plugins import pyfunc
from stream_scorer.plugins.pyfunc import Plugin
from stream_scorer.protocol import Answer, Status
from stream_scorer.scorer import Scorer
from tests.fakes import request
from tests.summing_model import save_echoing_model, save_summing_model

JSON = "application/json"


class Loaded:
    """The plugin with a model, and a scorer of both."""

    def __init__(self, folder: Path, max_batch_size: int = 512) -> None:
        self.plugin = Plugin()
        self.model = self.plugin.load_model(str(folder))
        self.scorer = Scorer(
            self.plugin,
            self.model,
            payload_bytes=100_000,
            result_bytes=100_000,
            max_batch_size=max_batch_size,
        )

    def score(self, *payloads: object, content_type: str = JSON) -> list[Answer]:
        bodies = [
            each if isinstance(each, bytes) else json.dumps(each).encode() for each in payloads
        ]
        return self.scorer.score(
            [request(payload=body, content_type=content_type) for body in bodies]
        )

    def predictions(self, *payloads: object, content_type: str = JSON) -> list[Any]:
        answers = self.score(*payloads, content_type=content_type)
        assert [answer.status for answer in answers] == [Status.OK] * len(payloads), [
            answer.body for answer in answers
        ]
        return [json.loads(answer.body)["predictions"] for answer in answers]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def saved(example: Any = None) -> Path:
        return save_summing_model(tmp_path_factory.mktemp("model"), example)

    return saved


@pytest.fixture(scope="module")
def table(save: Callable[..., Path]) -> Loaded:
    return Loaded(save(pd.DataFrame({"a": [1.5], "b": [2.5]})))


@pytest.fixture(scope="module")
def bare(save: Callable[..., Path]) -> Loaded:
    return Loaded(save())


SPLIT = {"columns": ["a", "b"], "data": [[1, 2.5], [3.5, 4]]}


@pytest.mark.parametrize(
    "payload",
    [
        {"dataframe_split": SPLIT},
        {"dataframe_split": {**SPLIT, "index": [0, 1]}},
        {"dataframe_split": {**SPLIT, "index": [17, "x"]}},
        {"dataframe_records": [{"a": 1, "b": 2.5}, {"b": 4, "a": 3.5}]},
        {"inputs": {"a": [1, 3.5], "b": [2.5, 4]}},
        {"instances": [{"a": 1, "b": 2.5}, {"a": 3.5, "b": 4}]},
        SPLIT,
        {**SPLIT, "index": [0, 1]},
        {**SPLIT, "params": {"factor": 1.0}},
    ],
    ids=str,
)
def test_each_form_of_mlflow_is_read_alone_and_among_others(table: Loaded, payload: object) -> None:
    assert table.predictions(payload) == [[[3.5, 2], [7.5, 2]]]
    assert table.predictions(payload, payload) == [[[3.5, 4], [7.5, 4]]] * 2


def test_csv(table: Loaded) -> None:
    (answer,) = table.predictions(b"b,a\n2.5,1\n4,3.5\n", content_type="text/csv; charset=UTF-8")
    assert answer == [[3.5, 2], [7.5, 2]]


def test_parquet(table: Loaded, tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 3.5], "b": [2.5, 4]}).to_parquet(tmp_path / "rows.parquet")
    payload = (tmp_path / "rows.parquet").read_bytes()
    (answer,) = table.predictions(payload, content_type="application/vnd.apache.parquet")
    assert answer == [[3.5, 2], [7.5, 2]]


def test_requests_of_the_same_columns_and_params_are_predicted_as_one(bare: Loaded) -> None:
    one = {"dataframe_split": {"columns": ["a"], "data": [[1]]}}
    other = {"dataframe_split": {"columns": ["b"], "data": [[2], [3]]}}
    assert bare.predictions(one, other, one, other, one) == [
        [[1, 3]],
        [[2, 4], [3, 4]],
        [[1, 3]],
        [[2, 4], [3, 4]],
        [[1, 3]],
    ]


def test_params_reach_only_their_own_requests(table: Loaded) -> None:
    asked = [{"dataframe_split": SPLIT, "params": {"factor": float(n)}} for n in (2, 3, 2)]
    assert table.predictions(*asked) == [
        [[7, 4], [15, 4]],
        [[10.5, 2], [22.5, 2]],
        [[7, 4], [15, 4]],
    ]


def test_arrays_are_joined_by_shape(save: Callable[..., Path]) -> None:
    arrays = Loaded(save(np.zeros((1, 2), np.float32)))
    small, large = {"instances": [[1, 2]]}, {"inputs": [[3, 4], [5, 6]]}
    assert arrays.predictions(small, large, small) == [[[3, 4]], [[7, 4], [11, 4]], [[3, 4]]]
    (refused,) = arrays.score({"instances": [[1, 2, 3]]})
    assert refused.status is Status.INVALID_PAYLOAD


def test_named_arrays_are_joined(save: Callable[..., Path]) -> None:
    named = Loaded(save({"x": np.zeros((1, 2)), "y": np.zeros(1)}))
    one = {"inputs": {"x": [[1.0, 2.0]], "y": [3.0]}}
    two = {"inputs": {"x": [[1.0, 2.0], [0.0, 0.0]], "y": [3.0, 5.0]}}
    assert named.predictions(one, two) == [[[6, 3]], [[6, 3], [5, 3]]]


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("frame", [{"sum": 3.5, "seen": 4}, {"sum": 7.5, "seen": 4}]),
        ("series", [{"0": 3.5}, {"0": 7.5}]),
        ("dict", {"sum": [3.5, 7.5], "seen": [4, 4]}),
        ("lists", {"sum": [3.5, 7.5], "seen": [4, 4]}),
        ("ragged", [[4] * 3, [4] * 7]),
    ],
)
def test_predictions_of_every_form_are_split(table: Loaded, form: str, answer: object) -> None:
    asked = {"dataframe_split": SPLIT, "params": {"form": form}}
    assert table.predictions(asked, asked) == [answer, answer]


def test_a_model_that_gives_one_answer_for_all_rows_gets_each_request_alone(table: Loaded) -> None:
    asked = {"dataframe_split": SPLIT, "params": {"form": "sum"}}
    assert table.predictions(asked, asked) == [11, 11]


@pytest.mark.parametrize(
    ("form", "answers"),
    [("bounds", [[3, 3], [7, 7]]), ("columns", [[[3], [1]], [[7], [1]]])],
)
def test_as_many_predictions_as_rows_by_coincidence_are_not_split(
    table: Loaded, form: str, answers: list[object]
) -> None:
    """Two for any request: as many as two requests of a row each have rows."""
    asked = [
        {"dataframe_split": {"columns": ["a", "b"], "data": [row]}, "params": {"form": form}}
        for row in ([1, 2], [3, 4])
    ]
    assert table.predictions(*asked) == answers
    # Nor later, when there are others too.
    three = {"dataframe_split": {"columns": ["a", "b"], "data": [[0, 1], [1, 2], [3, 4]]}}
    three["params"] = {"form": form}
    assert table.predictions(*asked, three)[:2] == answers
    assert table.predictions(*asked) == answers


def test_few_kinds_of_requests_are_remembered(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers make as many as they like, and of any size."""
    monkeypatch.setattr(pyfunc, "_MOST_KINDS", 2)
    table = Loaded(save(pd.DataFrame({"a": [1.5], "b": [2.5]})))
    for factor in (1.0, 2.0, 3.0, 4.0, 3.0):
        asked = {"dataframe_split": SPLIT, "params": {"factor": factor}}
        assert table.predictions(asked, asked) == [[[3.5 * factor, 4], [7.5 * factor, 4]]] * 2
        assert 1 <= len(table.plugin._by_row) <= 2
        assert {type(kind) for kind in table.plugin._by_row} == {int}


def test_a_request_without_rows_is_answered_as_it_is_alone(table: Loaded) -> None:
    empty, one, two = (
        {"dataframe_split": {"columns": ["a", "b"], "data": data}, "params": {"form": "bounds"}}
        for data in ([], [[1, 2]], [[3, 4]])
    )
    (alone,) = table.score(empty)
    assert alone.status is Status.MODEL_ERROR  # there is no least of none
    among, *others = table.score(empty, one, two)
    assert (among.status, among.body) == (alone.status, alone.body)
    assert [json.loads(each.body)["predictions"] for each in others] == [[3, 3], [7, 7]]


def test_arrays_of_a_fixed_number_of_rows_are_not_joined(save: Callable[..., Path]) -> None:
    fixed = Loaded(save(Schema([TensorSpec(np.dtype("float32"), (1, 2))])))
    payloads = (b'{"instances": [[1, 2]]}', b'{"inputs": [[3, 4]]}')
    instances = [fixed.plugin.decode(payload, JSON) for payload in payloads]
    predictions = fixed.plugin.predict(fixed.model, instances)
    assert [each.values for each in predictions] == [[[3, 1]], [[7, 1]]]


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"dataframe_split": {"columns": ["a"], "data": [[1]]}}, "missing"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [["x", 1]]}}, "x"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, "columns"),
        ({"dataframe_split": [1]}, ""),
        ({"dataframe_records": [1]}, ""),
        ({"dataframe_split": SPLIT, "inputs": [1]}, "exactly one"),
        ({}, "exactly one"),
        ({"dataframe_split": SPLIT, "params": [1]}, "Parameters must be a dictionary"),
        ({"dataframe_split": SPLIT, "params": {"factor": "x"}}, "factor"),
        ([1], "exactly one"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not UTF-8"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_the_signature_refuses_is_told_with_its_reason_and_harms_no_other(
    table: Loaded, payload: object, said: str
) -> None:
    good = {"dataframe_split": SPLIT}
    refused, scored = table.score(payload, good)
    assert refused.status is Status.INVALID_PAYLOAD, refused.body
    assert said in json.loads(refused.body)["detail"]
    assert scored.status is Status.OK
    # Whoever else was in the batch is not quoted.
    assert "7.5" not in json.loads(refused.body)["detail"]


def test_another_charset_is_refused(table: Loaded) -> None:
    (answer,) = table.score(SPLIT, content_type="application/json; charset=latin-1")
    assert answer.status is Status.INVALID_PAYLOAD
    assert b"UTF-8" in answer.body


def test_csv_that_is_none_is_refused(table: Loaded) -> None:
    (answer,) = table.score(b'"', content_type="text/csv")
    assert answer.status is Status.INVALID_PAYLOAD
    assert "Traceback" not in answer.body.decode()


def test_without_a_signature_types_are_those_that_were_sent(bare: Loaded) -> None:
    ints = {"dataframe_split": {"columns": ["a"], "data": [[1]]}}
    text = {"dataframe_split": {"columns": ["a"], "data": [["x"]]}}
    floats = {"dataframe_split": {"columns": ["a"], "data": [[1.5]]}}
    assert bare.predictions(ints, floats, ints) == [[[1, 2]], [[1.5, 1]], [[1, 2]]]
    scored, failed, again = bare.score(ints, text, ints)
    assert [json.loads(each.body)["predictions"] for each in (scored, again)] == [[[1, 1]]] * 2
    assert failed.status is Status.MODEL_ERROR


# ---- alone and among others -------------------------------------------------------------------

COLUMNS: dict[str, list[Any]] = {
    "boolean": [True, False, None, 1, 0.0, "true"],
    "string": ["7", 7, 7.5, None, "x", True],
    "long": [1, 9007199254740993, 1.5, None, "1", -3],
    "integer": [1, 2147483647, 2147483648, 1.0, None, "1"],
    "double": [1, 1.5, None, 9007199254740993, "1", True],
    "datetime": ["2026-01-01", "2026-01-01T10:00:00", 1767225600000000000, None],
}


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """A model for each type of column that gives back what it gets."""
    made = {}
    for kind in COLUMNS:
        folder = tmp_path_factory.mktemp(kind)
        save_echoing_model(folder, kind)
        made[kind] = Loaded(folder / "model")
    return made


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_answer_is_that_which_the_request_has_alone(
    echoes: dict[str, Loaded], kind: str
) -> None:
    values = COLUMNS[kind]
    payloads: list[object] = [
        {"dataframe_split": {"columns": ["a"], "data": [[value]]}} for value in values
    ]
    payloads += [{"dataframe_records": [{"a": value}]} for value in values]
    alone = [echoes[kind].score(each)[0] for each in payloads]
    among = echoes[kind].score(*payloads)
    told = [(each.status, each.body) for each in alone]
    assert [(each.status, each.body) for each in among] == told
    assert sum(status is Status.OK for status, _ in told) >= 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"columns": ["a", "b"], "data": [[1]]}, SPLIT),
        (
            {**SPLIT, "index": [1, 2, 3]},
            {**SPLIT, "index": [1]},
        ),
        ({"columns": ["a", "b"], "data": [{"a": 1}]}, {"columns": ["a", "b"], "data": ["xy"]}),
        ({"columns": ["a", ["b"]], "data": [[1, 2]]}, SPLIT),
    ],
    ids=str,
)
def test_what_one_table_lacks_another_does_not_make_up_for(
    table: Loaded, one: object, other: object
) -> None:
    payloads = [{"dataframe_split": one}, {"dataframe_split": other}]
    alone = [table.score(each)[0].status for each in payloads]
    assert Status.INVALID_PAYLOAD in alone
    assert [each.status for each in table.score(*payloads)] == alone


def test_bad_payloads_take_no_good_ones_down(table: Loaded) -> None:
    bad = {"dataframe_split": {"columns": ["a", ["b"]], "data": [[1, 2]]}}
    good = {"dataframe_split": SPLIT}
    answers = table.score(*[bad, good] * 16)
    assert [each.status for each in answers] == [Status.INVALID_PAYLOAD, Status.OK] * 16


def test_what_clients_of_tensorflow_serving_send_beside_is_left_out(table: Loaded) -> None:
    asked = {"inputs": {"a": [1], "b": [2.5]}, "signature_name": "serving_default", "id": 7}
    assert table.predictions(asked) == [[[3.5, 1]]]


def test_named_arrays_without_a_signature_are_predicted_alone(bare: Loaded) -> None:
    """One of them may be as long as there are rows, and yet be none of rows."""
    one = {"inputs": {"x": [[1.0], [2.0]], "w": [10.0, 20.0]}}
    assert bare.predictions(one, one) == [[[11, 2], [22, 2]]] * 2


def test_a_model_that_answers_once_for_all_is_not_asked_together_twice(table: Loaded) -> None:
    asked = {"dataframe_split": SPLIT, "params": {"form": "sum"}}
    calls: list[int] = []
    predict = table.model.predict

    def counting(data: Any, params: Any) -> Any:
        calls.append(len(data))
        return predict(data, params=params)

    table.plugin.predict(table.model, [table.plugin.decode(json.dumps(asked).encode(), JSON)] * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table.model, "predict", counting)
        instances = [table.plugin.decode(json.dumps(asked).encode(), JSON)] * 3
        table.plugin.predict(table.model, instances)
    assert calls == [2, 2, 2]


@pytest.mark.parametrize("column", ["number", "text"])
def test_a_parquet_that_unpacks_to_much_is_refused(table: Loaded, column: str) -> None:
    rows = 5_000_000 if column == "number" else 10_000
    value = 1.0 if column == "number" else "x" * 20_000
    packed = io.BytesIO()
    pq.write_table(pa.table({column: pa.array([value] * 10).take(np.arange(rows) % 10)}), packed)
    assert len(packed.getvalue()) < 100_000
    (answer,) = table.score(packed.getvalue(), content_type="application/vnd.apache.parquet")
    assert answer.status is Status.INVALID_PAYLOAD
    assert "more than" in json.loads(answer.body)["detail"]


def test_what_is_no_parquet_is_refused(table: Loaded) -> None:
    (answer,) = table.score(b"PAR1 or not", content_type="application/vnd.apache.parquet")
    assert answer.status is Status.INVALID_PAYLOAD
