"""A new plugin's folder: the plugin, its conf, a sample request and a test, from templates."""

from __future__ import annotations

import json
import keyword
import os
from dataclasses import dataclass
from importlib.resources import files
from math import isfinite
from pathlib import Path
from string import Template
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import yaml

from stream_scorer.errors import SetupError
from stream_scorer.plugins.codecs import JSON
from stream_scorer.plugins.description import Column, Description, Spec, Tensor, describe
from stream_scorer.plugins.models import ModelFolder, fetch_model
from stream_scorer.plugins.npy import NPY, encode_npy

_MOST_ROWS: Final = 3
_TABLE_KINDS: Final = {"double": "float64", "float": "float32"}
_VALUES: Final = {
    "boolean": False,
    "integer": 0,
    "long": 0,
    "float": 0.0,
    "double": 0.0,
    "string": "text",
    "datetime": "2026-01-01T00:00:00",
}
"""A value of each of MLflow's types of columns, for samples of models without an example."""


@dataclass(frozen=True, slots=True)
class _Start:
    """Which template a plugin begins from, what is filled in there, and a request that it takes."""

    template: str
    sample: bytes
    sample_name: str = "sample.json"
    content_type: str = JSON
    columns: str = ""
    dtype: str = "float64"
    shape: str = ""


def new_plugin(name: str, folder: Path, model_uri: str | None) -> list[Path]:
    """Write a plugin's folder.

    Args:
        name: what it is called; a Python name.
        folder: which must not be there yet.
        model_uri: the model whose signature and example say what the plugin takes; ``None`` writes
            one for tables of two columns.

    Returns:
        The files, the one to begin with first.

    Raises:
        SetupError: the name, the folder or the model cannot be used.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise SetupError(f"{name!r} is not a Python name, such as wine_quality")
    if folder.exists():
        raise SetupError(f"{folder} is there already")
    if model_uri is None:
        start, test = _stand_in(), "stand_in_test.py.txt"
        conf = f"# model_uri: models:/{name}/1    # the model goes here"
    else:
        model = fetch_model(model_uri)
        start, test = _start_for(model), "model_test.py.txt"
        conf = yaml.safe_dump({"model_uri": _seen_from(folder, model)}, allow_unicode=True)
    filled = {
        "name": name,
        "sample": start.sample_name,
        "content_type": start.content_type,
        "columns": start.columns,
        "dtype": start.dtype,
        "shape": start.shape,
        "model_uri": conf.rstrip(),
    }
    written = {
        "plugin.py": _filled(f"{start.template}.py.txt", filled),
        "conf.yaml": _filled("conf.yaml.txt", filled),
        f"data/{start.sample_name}": start.sample,
        f"test_{name}.py": _filled(test, filled),
    }
    try:
        (folder / "data").mkdir(parents=True)
        for place, content in written.items():
            (folder / place).write_bytes(content)
    except OSError as error:
        raise SetupError(f"{error.filename}: {error.strerror}") from None
    return [folder / place for place in written]


def _filled(template: str, values: dict[str, str]) -> bytes:
    text = (files("stream_scorer.plugins") / "templates" / template).read_text("utf-8")
    return Template(text).substitute(values).encode()


def _seen_from(folder: Path, model: ModelFolder) -> str:
    # A path is looked up from the conf's folder as well, and the two may be moved together.
    if urlsplit(model.uri).scheme in {"models", "runs"}:
        return model.uri
    return f"file:{os.path.relpath(model.path, folder)}"


def _stand_in() -> _Start:
    sample = [{"first": 1.0, "second": 2.0}, {"first": 3.0, "second": 4.0}]
    return _Start("table", _json(sample), columns=_listed(["first", "second"]))


def _start_for(model: ModelFolder) -> _Start:
    try:
        return _start(model)
    # A type that NumPy does not know, an example that is not what the signature says.
    except (TypeError, ValueError) as error:
        raise SetupError(
            f"model_uri {model.uri}: its signature and input example cannot be used: "
            + " ".join(str(error).split())
        ) from error


def _start(model: ModelFolder) -> _Start:
    described = describe(model)
    inputs = described.inputs or []
    named_output = any(spec.name for spec in described.outputs or [])
    kinds = {spec.kind for spec in inputs if isinstance(spec, Column)}
    if _are_plain_columns(inputs) and len(kinds) == 1:
        (kind,) = kinds
        names = [str(spec.name) for spec in inputs]
        if len({*names}) < len(names):
            raise ValueError("it names a column twice")
        return _Start(
            "table",
            _json(_rows(names, described)),
            columns=_listed(names),
            dtype=_TABLE_KINDS[kind],
        )
    match inputs:
        case [Tensor(None, dtype, (-1, *rest))] if (
            np.dtype(dtype).kind in "biuf" and not named_output
        ):
            sizes = [None, *(None if size == -1 else size for size in rest)]
            return _Start(
                "array",
                _array(dtype, rest, described),
                sample_name="sample.npy",
                content_type=NPY,
                dtype=dtype,
                shape=str(tuple(sizes)),
            )
    example = described.example
    return _Start("mlflow", _json(_example(model, inputs) if example is None else example))


def _are_plain_columns(inputs: list[Spec]) -> bool:
    return all(
        isinstance(spec, Column) and spec.name and spec.required and spec.kind in _TABLE_KINDS
        for spec in inputs
    )


def _rows(names: list[str], described: Description) -> list[dict[str, float]]:
    """The first rows of the model's example; where there is none, or a gap in it, zeros."""
    match described.example:
        case {"dataframe_split": {"columns": list(columns), "data": list(data)}} if data:
            sent = [dict(zip(columns, row, strict=True)) for row in data[:_MOST_ROWS]]
        case _:
            sent = [{}]
    return [{name: _number(row.get(name)) for name in names} for row in sent]


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and isfinite(value) else 0.0


def _array(dtype: str, rest: list[int], described: Description) -> bytes:
    match described.example:
        case {"inputs": list(values)} if values:
            return encode_npy(np.array(values[:_MOST_ROWS], dtype))
    return encode_npy(np.zeros([1, *(max(size, 1) for size in rest)], dtype))


def _example(model: ModelFolder, inputs: list[Spec]) -> Any:
    """A request for a model that has no example, by its signature."""
    columns = [spec for spec in inputs if isinstance(spec, Column)]
    if inputs and len(columns) == len(inputs) and {spec.kind for spec in columns} <= _VALUES.keys():
        names = [at if spec.name is None else spec.name for at, spec in enumerate(columns)]
        row = [_VALUES[spec.kind] for spec in columns]
        return {"dataframe_split": {"columns": names, "data": [row]}}
    arrays = [spec for spec in inputs if isinstance(spec, Tensor)]
    if inputs and len(arrays) == len(inputs):
        values = [
            np.zeros([abs(size) for size in spec.shape], spec.dtype).tolist() for spec in arrays
        ]
        if len(arrays) == 1 and arrays[0].name is None:
            return {"inputs": values[0]}
        return {"inputs": {spec.name: value for spec, value in zip(arrays, values, strict=True)}}
    raise SetupError(
        f"model_uri {model.uri}: it has no input example, and no signature to make one by; save it "
        "with one, or leave --model out"
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _listed(names: list[str]) -> str:
    """The names as the lines of a tuple in Python."""
    quoted = (
        f'"{name}"' if name.isprintable() and not {'"', "\\"} & {*name} else repr(name)
        for name in names
    )
    return "\n".join(f"        {name}," for name in quoted)
