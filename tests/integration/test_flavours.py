"""Models as MLflow's flavours save them, scored with no plugin: what pyfunc predicts, for each."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow.onnx
import mlflow.pyfunc
import mlflow.sklearn
import mlflow.xgboost
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from stream_scorer.plugins.loading import DEFAULT_PLUGIN, load_plugin
from stream_scorer.plugins.models import fetch_model, load_model
from stream_scorer.plugins.trust import PICKLE_SWITCH, check_model
from stream_scorer.protocol import Request, Status
from stream_scorer.scorer import Scorer
from tests.fakes import request

TABLE = pd.DataFrame({"a": [1.5, 2, 3, 4, 5, 6], "b": [1, 0, 3, 1, 2, 2]})
ARRAY = TABLE.to_numpy(np.float32)
NAMED = {"a": ARRAY[:, :1], "b": TABLE[["b"]].to_numpy()}
CLASSES = np.array([0, 1, 2, 0, 1, 2])
NAMES = np.array(["low", "middle", "high"])[CLASSES]

TABLES = tuple(
    rows.reset_index(drop=True)
    for rows in (TABLE[:1], TABLE[1:4], TABLE[4:5], TABLE[["b", "a"]][2:4])
)
ONE_ORDER = TABLES[:3]
ARRAYS = (ARRAY[:1], ARRAY[1:4], ARRAY[4:5])
NAMED_ARRAYS = tuple(
    {name: value[rows] for name, value in NAMED.items()}
    for rows in (slice(1), slice(1, 4), slice(4, 5))
)


class Asked(NamedTuple):
    """A request's data, as pyfunc takes them, and its params."""

    data: Any
    params: dict[str, Any] | None = None

    def request(self) -> Request:
        match self.data:
            case pd.DataFrame():
                sent: dict[str, Any] = {"dataframe_split": self.data.to_dict("split", index=False)}
            case dict():
                sent = {"inputs": {name: value.tolist() for name, value in self.data.items()}}
            case _:
                sent = {"instances": self.data.tolist()}
        if self.params is not None:
            sent["params"] = self.params
        return request(payload=json.dumps(sent).encode())


def save_sklearn(folder: Path, *, signature: bool = True) -> None:
    mlflow.sklearn.save_model(
        DecisionTreeClassifier(random_state=1).fit(TABLE, NAMES),
        folder,
        signature=infer_signature(TABLE, NAMES) if signature else None,
        serialization_format="skops",
        skops_trusted_types=["numpy.dtype", "sklearn.tree._tree.Tree"],
        pip_requirements=[],
    )


def save_onnx(folder: Path, model: Any, example: Any, inputs: Sequence[Any], **given: Any) -> None:
    import skl2onnx

    mlflow.onnx.save_model(
        skl2onnx.to_onnx(model, initial_types=list(inputs), **given),
        folder,
        signature=infer_signature(example),
        save_as_external_data=False,
        pip_requirements=[],
    )


def save_onnx_table(folder: Path) -> None:
    """One output, which pyfunc gives as a table for a table."""
    from skl2onnx.common.data_types import FloatTensorType

    tree = DecisionTreeRegressor(random_state=1).fit(ARRAY, CLASSES)
    save_onnx(folder, tree, TABLE, [("x", FloatTensorType([None, 2]))])


def save_onnx_array(folder: Path, *, maps: bool = False) -> None:
    """Two outputs, the second an array or, as the converter has it by itself, a list of maps."""
    from skl2onnx.common.data_types import FloatTensorType

    options = None if maps else {"zipmap": False}
    classifier = LogisticRegression().fit(ARRAY, CLASSES)
    inputs = [("x", FloatTensorType([None, 2]))]
    save_onnx(folder, classifier, ARRAY, inputs, options=options)


def save_onnx_named(folder: Path) -> None:
    """An input for each column, each of a type of its own."""
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType

    columns = make_column_transformer(("passthrough", ["a", "b"]))
    pipeline = make_pipeline(columns, LogisticRegression()).fit(TABLE, CLASSES)
    inputs = [("a", FloatTensorType([None, 1])), ("b", Int64TensorType([None, 1]))]
    save_onnx(folder, pipeline, NAMED, inputs, options={"zipmap": False})


def save_keras(folder: Path, outputs: int = 1) -> None:
    import keras
    import mlflow.keras

    # As every program begins.
    keras.utils.enable_interactive_logging()
    keras.utils.set_random_seed(1)
    given = keras.Input((2,))
    made = [keras.layers.Dense(3)(given) for _ in range(outputs)]
    model = keras.Model(given, made if outputs > 1 else made[0])
    mlflow.keras.save_model(
        model, str(folder), signature=infer_signature(ARRAY), pip_requirements=[]
    )


def save_keras_named(folder: Path) -> None:
    import keras
    import mlflow.keras

    keras.utils.set_random_seed(1)
    a, b = keras.Input((1,), name="a"), keras.Input((1,), name="b")
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(3)(keras.layers.Add()([a, b])))
    mlflow.keras.save_model(
        model, str(folder), signature=infer_signature(NAMED), pip_requirements=[]
    )


def save_booster(folder: Path) -> None:
    import xgboost

    data = xgboost.DMatrix(TABLE, label=CLASSES)
    settings = {"max_depth": 2, "nthread": 1, "objective": "multi:softprob", "num_class": 3}
    mlflow.xgboost.save_model(
        xgboost.train(settings, data, 3),
        folder,
        signature=infer_signature(TABLE),
        pip_requirements=[],
    )


def save_xgboost_classifier(folder: Path) -> None:
    import xgboost

    mlflow.xgboost.save_model(
        xgboost.XGBClassifier(n_estimators=3, max_depth=2, n_jobs=1).fit(TABLE, CLASSES),
        folder,
        signature=infer_signature(TABLE),
        model_format="json",
        pip_requirements=[],
    )


CODE = """
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        params = {"factor": 1.0, "table": False, **(params or {})}
        scaled = model_input[["a", "b"]] * params["factor"]
        return scaled if params["table"] else scaled.sum(axis=1)

mlflow.models.set_model(Model())
"""


def save_code(folder: Path, *, signature: bool = True) -> None:
    code = folder.parent / "code.py"
    code.write_text(CODE, encoding="utf-8")
    params = {"factor": 1.0, "table": False}
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(code),
        signature=infer_signature(TABLE, params=params) if signature else None,
        pip_requirements=[],
    )


PARAMS = (
    *(Asked(rows, {"factor": 2.0, "table": True}) for rows in ONE_ORDER),
    *(Asked(rows, {"factor": 3.0}) for rows in ONE_ORDER),
)


class Flavour(NamedTuple):
    """How a model is saved, what it is asked, and in how many calls a batch of that is predicted.

    A call for each order of columns and each value of the params, where the model gives a
    prediction for each row.
    """

    save: Callable[..., None]
    asked: Sequence[Asked]
    calls: int
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to


def asking(data: Sequence[Any]) -> list[Asked]:
    return [Asked(each) for each in data]


FLAVOURS = {
    "sklearn": Flavour(save_sklearn, asking(TABLES), 2),
    "sklearn without a signature": Flavour(
        save_sklearn, asking(ONE_ORDER), 1, {"signature": False}
    ),
    "onnx of a table": Flavour(save_onnx_table, asking(TABLES), 2),
    "onnx of an array": Flavour(save_onnx_array, asking(ARRAYS), 1),
    "onnx with maps": Flavour(save_onnx_array, asking(ARRAYS), 1, {"maps": True}),
    "onnx of named arrays": Flavour(save_onnx_named, asking(NAMED_ARRAYS), 1),
    "onnx of columns": Flavour(save_onnx_named, asking(TABLES), 2),
    "keras": Flavour(save_keras, asking(ARRAYS), 1),
    # As many outputs as rows in all: once together, once to see that this means nothing.
    "keras with two outputs": Flavour(save_keras, asking(ARRAYS[::2]), 4, {"outputs": 2}),
    "keras of named arrays": Flavour(save_keras_named, asking(NAMED_ARRAYS), 1),
    "xgboost": Flavour(save_booster, asking(TABLES), 2),
    "xgboost, scikit-learn's way": Flavour(save_xgboost_classifier, asking(TABLES), 2),
    "code with params": Flavour(save_code, PARAMS, 2),
    "code without a signature": Flavour(save_code, asking(TABLES), 2, {"signature": False}),
}


@pytest.mark.parametrize("name", FLAVOURS)
@pytest.mark.filterwarnings("ignore::UserWarning:mlflow")  # on what else could be saved
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras, for NumPy 2
def test_answers_are_what_pyfunc_predicts_for_each_request_alone(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(PICKLE_SWITCH, "")
    flavour = FLAVOURS[name]
    flavour.save(tmp_path / "model", **flavour.options)
    folder = fetch_model(str(tmp_path / "model"))
    is_code = name.startswith("code")
    check_model(folder, allow_pickle=False, allow_code=is_code, trusted_types=())
    plugin = load_plugin(DEFAULT_PLUGIN)
    model = load_model(plugin, folder)
    scorer = Scorer(plugin, model, payload_bytes=10**5, result_bytes=10**5, max_batch_size=512)
    calls: list[Any] = []
    predict = model.predict

    def counted(data: Any, params: Any = None) -> Any:
        calls.append(data)
        return predict(data, params=params)

    monkeypatch.setattr(model, "predict", counted)
    caplog.set_level(logging.INFO)
    requests = [asked.request() for asked in flavour.asked]
    alone = [answer for each in requests for answer in scorer.score([each])]
    together = scorer.score(requests)
    calls.clear()
    again = scorer.score(requests)
    assert len(calls) == flavour.calls
    straight = mlflow.pyfunc.load_model(str(folder.path))
    expected = [plain(straight.predict(asked.data, params=asked.params)) for asked in flavour.asked]
    for answers in (alone, together, again):
        assert [answer.status for answer in answers] == [Status.OK] * len(requests)
        given = [json.loads(answer.body) for answer in answers]
        assert [each.keys() for each in given] == [{"predictions"}] * len(requests)
        assert all(
            is_same(each["predictions"], wanted)
            for each, wanted in zip(given, expected, strict=True)
        ), (given, expected)
    # Nor does a library draw progress bars into the log.
    assert "ms/step" not in caplog.text
    assert capfd.readouterr().out == ""


def plain(predicted: Any) -> Any:
    """What JSON has for predictions."""
    match predicted:
        case pd.Series():
            return plain(predicted.to_frame("0"))
        case pd.DataFrame():
            return [
                {str(key): plain(value) for key, value in row.items()}
                for row in predicted.to_dict("records")
            ]
        case np.ndarray() | np.generic():
            return plain(predicted.tolist())
        case dict():
            return {str(key): plain(value) for key, value in predicted.items()}
        case list():
            return [plain(each) for each in predicted]
    return predicted


def is_same(given: Any, wanted: Any) -> bool:
    """Whether they are alike but for what float32 rounds, which differs with the size of a call."""
    match given, wanted:
        case dict(), dict():
            return given.keys() == wanted.keys() and all(
                is_same(given[key], wanted[key]) for key in given
            )
        case list(), list():
            return len(given) == len(wanted) and all(map(is_same, given, wanted))
        case ((int() | float()), (int() | float())):
            return given == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    return bool(given == wanted)
