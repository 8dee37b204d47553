"""``stream-scorer new plugin``: what it writes works as written, for models of each kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

from stream_scorer.config import load_settings
from stream_scorer.errors import SetupError
from stream_scorer.plugins.loading import load_plugin
from stream_scorer.plugins.models import ModelError
from stream_scorer.plugins.new import new_plugin
from stream_scorer.plugins.npy import decode_npy

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCORER_")}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def save(folder: Path, frame: pd.DataFrame, example: pd.DataFrame | None) -> None:
    model = LinearRegression().fit(frame, [1.0] * len(frame))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of integer columns
        mlflow.sklearn.save_model(
            model,
            folder,
            signature=infer_signature(frame, [1.0]),
            input_example=example,
            serialization_format="skops",
            pip_requirements=[],
        )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one plugin for each kind of model."""
    folder = tmp_path_factory.mktemp("new")
    table = pd.DataFrame({"first one": [1.5, 2.5], 'the "second"': [3.5, 4.5]})
    save(folder / "tables", table, table)
    save(folder / "mixed", pd.DataFrame({"whole": [1, 2], "real": [1.5, 2.5]}), None)
    new_plugin("of_table", folder / "of_table", f"file:{folder / 'tables'}")
    new_plugin("of_mixed", folder / "of_mixed", str(folder / "mixed"))
    wine = ROOT / "samples" / "sklearn_wine" / "model"
    new_plugin("of_array", folder / "deep" / "of_array", f"file:{wine}")
    done = run(folder, "stream_scorer", "new", "plugin", "without_model")
    assert done.returncode == 0, done.stderr
    assert [*map(Path, done.stdout.splitlines()[:4])] == [
        Path("without_model", name)
        for name in ("plugin.py", "conf.yaml", "data/sample.json", "test_without_model.py")
    ]
    return folder


def test_the_written_tests_pass(written: Path) -> None:
    done = run(written, "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", ".")
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout


def test_the_written_code_is_typed_and_formatted(written: Path) -> None:
    files = [str(path) for path in written.rglob("*.py")]
    assert len(files) == 8
    for file in files:
        done = run(ROOT, "mypy", "--strict", file)
        assert done.returncode == 0, done.stdout
    done = run(ROOT, "ruff", "format", "--check", *files)
    assert done.returncode == 0, done.stdout


def test_a_table_is_taken_with_the_model_s_columns_and_example(written: Path) -> None:
    folder = written / "of_table"
    plugin: Any = load_plugin(str(folder / "plugin.py"))
    assert plugin.columns == ("first one", 'the "second"')
    sample = json.loads((folder / "data" / "sample.json").read_text("utf-8"))
    assert [tuple(row) for row in sample] == [plugin.columns] * 2
    assert [tuple(row.values()) for row in sample] == [(1.5, 3.5), (2.5, 4.5)]
    assert load_settings(folder / "conf.yaml", {}).model_uri == "file:../tables"


def test_an_array_is_taken_with_the_model_s_shape_and_type(written: Path) -> None:
    folder = written / "deep" / "of_array"
    plugin: Any = load_plugin(str(folder / "plugin.py"))
    assert (plugin.shape, plugin.dtype) == ((None, 11), "float64")
    assert decode_npy((folder / "data" / "sample.npy").read_bytes()).shape == (1, 11)


def test_other_models_take_what_mlflow_takes(written: Path) -> None:
    sample = json.loads((written / "of_mixed" / "data" / "sample.json").read_text("utf-8"))
    assert sample == {"dataframe_split": {"columns": ["whole", "real"], "data": [[0, 0.0]]}}


def model(folder: Path, inputs: Any = None, example: Any = None, outputs: Any = None) -> str:
    """A model of which nothing is there but what it says of itself."""
    folder.mkdir()
    signature = {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs)}
    told: dict[str, Any] = {"flavors": {}, "signature": signature if inputs else None}
    if example is not None:
        told["saved_input_example_info"] = {"serving_input_path": "example.json"}
        (folder / "example.json").write_text(json.dumps(example), "utf-8")
    (folder / "MLmodel").write_text(yaml.safe_dump(told), "utf-8")
    return str(folder)


def column(kind: str, name: str | None = "a", **more: Any) -> dict[str, Any]:
    return {"type": kind, "name": name, **more}


def tensor(dtype: str, *shape: int, **more: Any) -> dict[str, Any]:
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}, **more}


def split(columns: list[Any], *rows: list[Any]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": columns, "data": rows}}


@pytest.mark.parametrize(
    ("inputs", "example", "sample"),
    [
        ([column("double")], None, [{"a": 0.0}]),
        ([column("float")], split(["a"], *[[None]] * 9), [{"a": 0.0}] * 3),
        ([column("double"), column("float", "b")], None, split(["a", "b"], [0.0, 0.0])),
        ([column("double", required=False)], None, split(["a"], [0.0])),
        ([column("string"), column("boolean", "b")], None, split(["a", "b"], ["text", False])),
        ([column("double", None)], None, split([0], [0.0])),
        ([tensor("float32", 1, 2)], None, {"inputs": [[0.0, 0.0]]}),
        ([tensor("str", -1)], None, {"inputs": [""]}),
        (
            [tensor("int64", -1, name="x"), tensor("int64", -1, 2, name="y")],
            None,
            {"inputs": {"x": [0], "y": [[0, 0]]}},
        ),
        ([column("object")], {"inputs": [{"x": 1}]}, {"inputs": [{"x": 1}]}),
        (None, {"instances": [1]}, {"instances": [1]}),
    ],
)
def test_a_sample_is_made_of_the_example_else_of_the_signature(
    tmp_path: Path, inputs: Any, example: Any, sample: Any
) -> None:
    new_plugin("it", tmp_path / "it", model(tmp_path / "model", inputs, example))
    written = (tmp_path / "it" / "data" / "sample.json").read_text("utf-8")
    assert json.loads(written) == json.loads(json.dumps(sample))
    load_plugin(str(tmp_path / "it" / "plugin.py"))


def test_an_array_of_the_example_is_the_sample(tmp_path: Path) -> None:
    uri = model(tmp_path / "model", [tensor("uint8", -1, 2, -1)], {"inputs": [[[1], [2]]] * 9})
    new_plugin("it", tmp_path / "it", uri)
    sample = decode_npy((tmp_path / "it" / "data" / "sample.npy").read_bytes())
    assert (sample.tolist(), sample.dtype) == ([[[1], [2]]] * 3, np.dtype(np.uint8))
    plugin: Any = load_plugin(str(tmp_path / "it" / "plugin.py"))
    assert plugin.shape == (None, 2, None)


def test_named_outputs_are_left_to_mlflow(tmp_path: Path) -> None:
    outputs = [tensor("float32", -1, name="probabilities")]
    uri = model(tmp_path / "model", [tensor("float32", -1, 2)], None, outputs)
    new_plugin("it", tmp_path / "it", uri)
    assert "pyfunc.Plugin" in (tmp_path / "it" / "plugin.py").read_text("utf-8")


def test_column_names_of_any_kind_stay_what_they_are(tmp_path: Path) -> None:
    names = ["$name", "it's", '"', "\\", "line\nend", "größe", "{}", "\u2028"]
    uri = model(tmp_path / "model", [column("double", name) for name in names])
    new_plugin("it", tmp_path / "it", uri)
    plugin: Any = load_plugin(str(tmp_path / "it" / "plugin.py"))
    assert plugin.columns == tuple(names)
    plugin.decode((tmp_path / "it" / "data" / "sample.json").read_bytes(), "application/json")


@pytest.mark.parametrize("inputs", [None, [column("map")], [column("double"), tensor("uint8", -1)]])
def test_a_model_that_tells_nothing_is_refused(tmp_path: Path, inputs: Any) -> None:
    with pytest.raises(SetupError, match="no input example, and no signature to make one by"):
        new_plugin("it", tmp_path / "it", model(tmp_path / "model", inputs))
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize(
    ("inputs", "example", "told"),
    [
        ([tensor("nonsense", -1)], None, "data type 'nonsense' not understood"),
        ([tensor("nonsense", 2, name="x")], None, "data type 'nonsense' not understood"),
        ([tensor("float32", -1)], {"inputs": ["a"]}, "could not convert string to float"),
        ([column("double")], split(["a"], [1.0, 2.0]), "zip"),
        ([column("double"), column("double")], None, "it names a column twice"),
    ],
)
def test_a_signature_that_no_plugin_can_be_made_by_is_told(
    tmp_path: Path, inputs: Any, example: Any, told: str
) -> None:
    with pytest.raises(SetupError) as caught:
        new_plugin("it", tmp_path / "it", model(tmp_path / "model", inputs, example))
    assert told in str(caught.value)
    assert "its signature and input example cannot be used: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize("name", ["", "1st", "a-b", "a.b", "../a", "class", "a b", "a/b"])
def test_a_name_that_python_cannot_use_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SetupError, match="is not a Python name, such as wine_quality"):
        new_plugin(name, tmp_path / "it", None)
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "file").write_text("mine", "utf-8")
    for place in ("it", "file"):
        with pytest.raises(SetupError, match=f"{place} is there already"):
            new_plugin("it", tmp_path / place, None)
    assert [*(tmp_path / "it").iterdir()] == []
    with pytest.raises(SetupError, match="Not a directory"):
        new_plugin("it", tmp_path / "file" / "it", None)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model_uri missing: no such folder"):
        new_plugin("it", tmp_path / "it", "missing")


def test_what_cannot_be_written_is_one_line_and_2(tmp_path: Path) -> None:
    done = run(tmp_path, "stream_scorer", "new", "plugin", "1st")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "stream-scorer: '1st' is not a Python name, such as wine_quality\n"
