from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samples.sklearn_wine.onnx.plugin import Plugin as OnnxPlugin
from samples.sklearn_wine.plugin import COLUMNS
from samples.sklearn_wine.plugin import Plugin as SklearnPlugin
from stream_scorer.plugins import InvalidPayload, Plugin

WinePlugin = Plugin[Any, Any, Any]

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "sklearn_wine"
ANSWER = [5.370157819225251, 5.535714285714286, 5.760869565217392]
DOCUMENT = json.loads((SAMPLE / "data" / "predict-wine-quality.json").read_text())


@pytest.fixture(scope="module")
def sklearn_model() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow's imports say of each other
        return SklearnPlugin().load_model(str(SAMPLE / "model"))


@pytest.fixture(scope="module")
def onnx_model() -> Any:
    return OnnxPlugin().load_model(str(SAMPLE / "onnx" / "model"))


def score(plugin: WinePlugin, model: Any, *documents: object) -> list[Any]:
    instances = [plugin.decode(json.dumps(it).encode(), "application/json") for it in documents]
    answers = []
    for prediction in plugin.predict(model, instances):
        body, content_type = plugin.encode(prediction, None)
        assert content_type == "application/json"
        answers.append(json.loads(body))
    return answers


def test_the_sample_request_is_the_three_wines() -> None:
    assert {
        "columns": [*COLUMNS, "quality"],
        "data": [
            [7, 0.27, 0.36, 20.7, 0.045, 45, 170, 1.001, 3, 0.45, 8.8, 6],
            [6.3, 0.3, 0.34, 1.6, 0.049, 14, 132, 0.994, 3.3, 0.49, 9.5, 6],
            [8.1, 0.28, 0.4, 6.9, 0.05, 30, 97, 0.9951, 3.26, 0.44, 10.1, 6],
        ],
    } == DOCUMENT


def test_scikit_learn_answers_exactly(sklearn_model: Any) -> None:
    plugin = SklearnPlugin()
    instance = plugin.decode(json.dumps(DOCUMENT).encode(), "application/json")
    (prediction,) = plugin.predict(sklearn_model, [instance])
    body, _ = plugin.encode(prediction, None)
    assert body == b"[5.370157819225251,5.535714285714286,5.760869565217392]"


def test_onnx_answers_the_same(onnx_model: Any) -> None:
    (answer,) = score(OnnxPlugin(), onnx_model, DOCUMENT)
    assert answer == pytest.approx(ANSWER, abs=1e-6, rel=0)


def test_onnx_answers_the_same_at_each_split(sklearn_model: Any, onnx_model: Any) -> None:
    """Measurements on, just below and just above every threshold of the tree, as float64."""
    tree = sklearn_model.tree_
    rng = np.random.default_rng(7)
    wines = np.array([row[: len(COLUMNS)] for row in DOCUMENT["data"]], np.float64)
    spread = wines[rng.integers(0, 3, 40)] * rng.uniform(0.7, 1.4, (40, len(COLUMNS)))
    rows = []
    for feature, threshold in zip(tree.feature, tree.threshold, strict=True):
        if feature < 0:
            continue  # a leaf
        for value in (threshold, np.nextafter(threshold, -1), np.nextafter(threshold, 1e9)):
            near = spread.copy()
            near[:, feature] = value
            single = near.copy()
            single[:, feature] = np.nextafter(np.float32(value), np.float32(1e9))
            rows += [near, single]
    instance = np.concatenate(rows)
    (expected,) = SklearnPlugin().predict(sklearn_model, [instance])
    (converted,) = OnnxPlugin().predict(onnx_model, [instance])
    assert len(np.unique(expected)) > 10
    np.testing.assert_allclose(converted, expected, atol=1e-6, rtol=0)


def test_several_requests_keep_their_own_rows(sklearn_model: Any, onnx_model: Any) -> None:
    columns, rows = DOCUMENT["columns"], DOCUMENT["data"]
    documents = [
        {"columns": columns, "data": [rows[at] for at in order]} for order in ([2], [1, 0])
    ]
    assert score(SklearnPlugin(), sklearn_model, *documents) == [
        [ANSWER[2]],
        [ANSWER[1], ANSWER[0]],
    ]
    first, second = score(OnnxPlugin(), onnx_model, *documents)
    assert first == pytest.approx([ANSWER[2]], abs=1e-6)
    assert second == pytest.approx([ANSWER[1], ANSWER[0]], abs=1e-6)


def reordered(names: list[str]) -> dict[str, Any]:
    at = [DOCUMENT["columns"].index(name) for name in names]
    return {"columns": names, "data": [[row[place] for place in at] for row in DOCUMENT["data"]]}


@pytest.mark.parametrize(
    "names",
    [list(COLUMNS), list(reversed(COLUMNS)), ["quality", *COLUMNS[3:], *COLUMNS[:3]]],
    ids=["without quality", "backwards", "turned"],
)
def test_columns_in_any_order(sklearn_model: Any, onnx_model: Any, names: list[str]) -> None:
    document = reordered(names)
    assert score(SklearnPlugin(), sklearn_model, document) == [ANSWER]
    (answer,) = score(OnnxPlugin(), onnx_model, document)
    assert answer == pytest.approx(ANSWER, abs=1e-6)


@pytest.mark.parametrize("plugin", [SklearnPlugin(), OnnxPlugin()], ids=["sklearn", "onnx"])
class TestRefusals:
    def reason(self, plugin: WinePlugin, document: object) -> str:
        with pytest.raises(InvalidPayload) as refused:
            plugin.decode(json.dumps(document).encode(), "application/json")
        return str(refused.value)

    def test_a_missing_column(self, plugin: WinePlugin) -> None:
        names = [name for name in COLUMNS if name != "pH"]
        assert self.reason(plugin, reordered(names)) == "missing columns: pH"

    def test_an_unknown_column(self, plugin: WinePlugin) -> None:
        document = reordered(list(COLUMNS))
        document["columns"].append("price")
        assert self.reason(plugin, document) == "unknown columns: price"

    def test_a_column_sent_twice(self, plugin: WinePlugin) -> None:
        document = reordered([*COLUMNS, "alcohol"])
        assert self.reason(plugin, document) == "columns sent twice: alcohol"

    @pytest.mark.parametrize("value", ["dry", None, True, [8.8]])
    def test_a_value_that_is_no_number(self, plugin: WinePlugin, value: object) -> None:
        document = reordered(list(COLUMNS))
        document["data"][2][-1] = value
        assert self.reason(plugin, document) == "row 2, column 'alcohol': not a number"

    @pytest.mark.parametrize("value", [1e300, -(10**200)])
    def test_a_number_beyond_float32(self, plugin: WinePlugin, value: float) -> None:
        document = reordered(list(COLUMNS))
        document["data"][0][0] = value
        reason = self.reason(plugin, document)
        assert reason == "row 0, column 'fixed acidity': the number is too large"

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_value_that_json_does_not_have(self, plugin: WinePlugin, value: float) -> None:
        document = reordered(list(COLUMNS))
        document["data"][0][0] = value
        assert self.reason(plugin, document).startswith("the payload is not JSON: ")


def test_both_plugins_take_the_same_columns() -> None:
    from samples.sklearn_wine.onnx.plugin import COLUMNS as ONNX_COLUMNS

    assert ONNX_COLUMNS == COLUMNS


def test_the_onnx_worker_stays_small() -> None:
    script = f"""
import sys
from samples.sklearn_wine.onnx.plugin import Plugin
plugin = Plugin()
model = plugin.load_model({str(SAMPLE / "onnx" / "model")!r})
payload = open({str(SAMPLE / "data" / "predict-wine-quality.json")!r}, "rb").read()
plugin.predict(model, [plugin.decode(payload, "application/json")])
heavy = {{"mlflow", "pandas", "sklearn", "scipy", "onnx", "tensorflow"}}
sys.stdout.write(" ".join(sorted(heavy.intersection(sys.modules))))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == ""
