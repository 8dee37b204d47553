"""What a model's folder tells of it, and what it cannot tell."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_scorer import __version__
from stream_scorer.plugins.description import (
    Column,
    Description,
    Spec,
    Tensor,
    describe,
    example_payloads,
    in_words,
    installed,
    size_on_disk,
)
from stream_scorer.plugins.models import ModelFolder
from stream_scorer.plugins.npy import NPY, decode_npy

ROOT = Path(__file__).parents[2]


def folder(path: Path, told: dict[str, Any] | None = None, example: Any = None) -> ModelFolder:
    (path / "MLmodel").write_text(yaml.safe_dump({"flavors": {}, **(told or {})}), "utf-8")
    if example is not None:
        (path / "example.json").write_text(json.dumps(example), "utf-8")
    return ModelFolder(path, "file:model", "1", {})


COLUMNS = [
    {"type": "double", "name": "a", "required": True},
    {"type": "string", "name": "b", "required": False},
]
IMAGES = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, 28, 28]}}


def test_signature_and_example_are_read(tmp_path: Path) -> None:
    told = {
        "signature": {
            "inputs": json.dumps(COLUMNS),
            "outputs": json.dumps([IMAGES]),
            "params": json.dumps([{"name": "factor", "type": "double", "default": 1.0}]),
        },
        "saved_input_example_info": {"serving_input_path": "example.json"},
    }
    described = describe(folder(tmp_path, told, {"inputs": [1]}))
    assert described.inputs == [Column("a", "double"), Column("b", "string", required=False)]
    assert described.outputs == [Tensor(None, "uint8", (-1, 28, 28))]
    assert described.params == ["factor"]
    assert described.example == {"inputs": [1]}


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"signature": None, "saved_input_example_info": None},
        {"signature": {"inputs": None}, "saved_input_example_info": {}},
        {"signature": "no map", "saved_input_example_info": "no map"},
        {"signature": {"inputs": "no JSON"}, "saved_input_example_info": {"serving_input_path": 3}},
        {"signature": {"inputs": "[{}]", "params": "[{}]"}},
        {"signature": {"inputs": '{"a": 1}', "params": "3"}},
        {"signature": {"inputs": '[{"type": "tensor"}]'}},
        {"saved_input_example_info": {"serving_input_path": "missing.json"}},
        {"saved_input_example_info": {"serving_input_path": "MLmodel"}},
    ],
    ids=str,
)
def test_what_cannot_be_read_counts_as_not_there(tmp_path: Path, told: dict[str, Any]) -> None:
    assert describe(folder(tmp_path, told)) == Description()


@pytest.mark.parametrize("place", ["../example.json", "{path}/example.json"])
def test_an_example_is_not_read_from_outside_the_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "example.json").write_text("[1]", "utf-8")
    (tmp_path / "model").mkdir()
    info = {"serving_input_path": place.format(path=tmp_path)}
    assert describe(folder(tmp_path / "model", {"saved_input_example_info": info})).example is None


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        (None, "not said"),
        ([], "not said"),
        ([Column(None, "double")], "double"),
        (
            [Column("a", "double"), Column("b", "string", required=False)],
            "2 columns: a (double), b (string, optional)",
        ),
        ([Tensor(None, "uint8", (-1, 28))], "an array of uint8, shape (any, 28)"),
        (
            [Tensor("x", "float32", (-1,)), Tensor("y", "int64", (2,))],
            "x: an array of float32, shape (any), y: an array of int64, shape (2)",
        ),
        (
            [Column(str(number), "long") for number in range(30)],
            f"30 columns: {', '.join(f'{number} (long)' for number in range(8))}, 22 more",
        ),
    ],
)
def test_a_signature_in_words(specs: list[Spec] | None, words: str) -> None:
    assert in_words(specs) == words


def test_an_example_in_each_form_that_a_plugin_may_take() -> None:
    table = {"columns": ["a"], "data": [[1.5]]}
    payloads = list(example_payloads(Description(example={"dataframe_split": table})))
    assert [(json.loads(body), kind) for body, kind in payloads] == [
        ({"dataframe_split": table}, "application/json"),
        (table, "application/json"),
    ]
    described = Description([Tensor(None, "uint8", (-1, 2))], example={"inputs": [[1, 2]]})
    whole, (array, kind) = example_payloads(described)
    assert (json.loads(whole[0]), kind) == ({"inputs": [[1, 2]]}, NPY)
    assert decode_npy(array).dtype == "uint8"
    assert list(example_payloads(Description(example=[1]))) == [(b"[1]", "application/json")]
    assert list(example_payloads(Description())) == []


def test_versions_that_are_here_and_those_that_the_model_asks_for(tmp_path: Path) -> None:
    model = folder(tmp_path)
    model.flavors["python_function"] = {"python_version": "3.10.1"}
    (tmp_path / "requirements.txt").write_text(
        "mlflow==2.0\nNumPy<3  # a comment\n--index-url https://example.org\n\nno_such.library>=1\n"
        "pandas; python_version<'3'\n./local\n",
        "utf-8",
    )
    found = {library.name: library for library in installed(model)}
    assert found["Python"][1:] == (platform.python_version(), "==3.10.1")
    assert found["stream-scorer"][1:] == (__version__, None)
    assert found["numpy"].wanted == "<3"
    assert found["no-such-library"][1:] == (None, ">=1")
    # mlflow-skinny where that is what is installed, as it is here.
    (mlflow,) = [library for name, library in found.items() if name.startswith("mlflow")]
    assert mlflow.version
    assert mlflow.wanted == "==2.0"
    assert "pandas" not in found
    assert len(found) == 5


def test_a_model_without_requirements_has_the_versions_that_always_count(tmp_path: Path) -> None:
    names = [library.name for library in installed(folder(tmp_path))]
    assert [name.removesuffix("-skinny") for name in names] == [
        "Python",
        "stream-scorer",
        "mlflow",
        "numpy",
    ]


def test_the_size_is_of_all_files(tmp_path: Path) -> None:
    model = folder(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights").write_bytes(b"x" * 1000)
    assert size_on_disk(model) == (1000 + (tmp_path / "MLmodel").stat().st_size, 2)
