"""What a model's folder tells of it: its signature, an example of its input, its libraries."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final, NamedTuple

import numpy as np
import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from stream_scorer import __version__
from stream_scorer.plugins.codecs import JSON
from stream_scorer.plugins.models import ModelFolder, is_within
from stream_scorer.plugins.npy import NPY, encode_npy

_MOST_COLUMNS: Final = 8
_ALWAYS: Final = ("mlflow", "numpy")


class Column(NamedTuple):
    """A column that a model takes or gives; ``kind`` is MLflow's name of its type."""

    name: str | None
    kind: str
    required: bool = True


class Tensor(NamedTuple):
    """An array that a model takes or gives; a size of -1 stands for any."""

    name: str | None
    dtype: str
    shape: tuple[int, ...]


Spec = Column | Tensor


@dataclass(frozen=True, slots=True)
class Description:
    """What a model says of itself; ``None`` or empty where it does not.

    ``example`` is the saved input example, as its JSON for MLflow's own server.
    """

    inputs: list[Spec] | None = None
    outputs: list[Spec] | None = None
    params: list[str] | None = None
    example: Any = None


def describe(folder: ModelFolder) -> Description:
    """Read a model's signature and example; what cannot be read counts as not there."""
    told = yaml.safe_load((folder.path / "MLmodel").read_text(encoding="utf-8"))
    signature = told.get("signature")
    example = None
    with suppress(OSError, ValueError, TypeError, KeyError):
        place = str(told["saved_input_example_info"]["serving_input_path"])
        if is_within(place):
            example = json.loads((folder.path / place).read_text("utf-8"))
    params = None
    with suppress(ValueError, TypeError, KeyError):
        params = [each["name"] for each in json.loads(signature["params"])]
    return Description(_specs(signature, "inputs"), _specs(signature, "outputs"), params, example)


def _specs(signature: Any, side: str) -> list[Spec] | None:
    with suppress(ValueError, TypeError, AttributeError, KeyError):
        return [_spec(each) for each in json.loads(signature[side])]
    return None


def _spec(told: dict[str, Any]) -> Spec:
    if told["type"] == "tensor":
        tensor = told["tensor-spec"]
        return Tensor(told.get("name"), tensor["dtype"], tuple(tensor["shape"]))
    return Column(told.get("name"), told["type"], told.get("required", True))


def in_words(specs: Sequence[Spec] | None) -> str:
    """What a model takes or gives, in a line."""
    if not specs:
        return "not said"
    shown = [_words(spec) for spec in specs[:_MOST_COLUMNS]]
    if len(specs) > len(shown):
        shown.append(f"{len(specs) - len(shown)} more")
    count = f"{len(specs)} columns: " if len(specs) > 1 and isinstance(specs[0], Column) else ""
    return count + ", ".join(shown)


def _words(spec: Spec) -> str:
    match spec:
        case Column(name, kind, required):
            told = kind if required else f"{kind}, optional"
            return told if name is None else f"{name} ({told})"
        case Tensor(name, dtype, shape):
            sizes = ", ".join("any" if size == -1 else str(size) for size in shape)
            told = f"an array of {dtype}, shape ({sizes})"
            return told if name is None else f"{name}: {told}"


def example_payloads(description: Description) -> Iterator[tuple[bytes, str]]:
    """A model's input example as payloads of the types that a plugin may take it in."""
    example = description.example
    if example is None:
        return
    yield json.dumps(example).encode(), JSON
    if not isinstance(example, dict):
        return
    if (table := example.get("dataframe_split")) is not None:
        yield json.dumps(table).encode(), JSON
    match description.inputs, example.get("inputs"):
        case [Tensor(None, dtype, _)], list(values):
            with suppress(ValueError, TypeError):
                yield encode_npy(np.array(values, dtype)), NPY


class Installed(NamedTuple):
    """A library: the version that is installed here, and the one that the model asks for."""

    name: str
    version: str | None
    wanted: str | None = None


def installed(folder: ModelFolder) -> list[Installed]:
    """Python, this program, and what the model asks for in its ``requirements.txt``."""
    wanted = dict(_requirements(folder))
    flavor = folder.flavors.get("python_function")
    python = flavor.get("python_version") if isinstance(flavor, dict) else None
    found = [
        Installed("Python", platform.python_version(), python and f"=={python}"),
        Installed("stream-scorer", __version__),
    ]
    for name in dict.fromkeys([*_ALWAYS, *wanted]):
        found.append(Installed(*_found(name), wanted.get(name)))
    return found


def _found(name: str) -> tuple[str, str | None]:
    """The library that is installed by this name, or the one that stands in for it."""
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        # Some come under several: mlflow-skinny and tensorflow-cpu are imported as the whole.
        others = metadata.packages_distributions().get(name.replace("-", "_"), [])
        return (others[0], metadata.version(others[0])) if others else (name, None)


def _requirements(folder: ModelFolder) -> Iterator[tuple[str, str | None]]:
    lines: list[str] = []
    with suppress(OSError, UnicodeDecodeError):
        lines = (folder.path / "requirements.txt").read_text("utf-8").splitlines()
    for line in lines:
        # Options, addresses and comments stand there too.
        with suppress(InvalidRequirement):
            requirement = Requirement(line.partition("#")[0].strip())
            if requirement.marker is None or requirement.marker.evaluate():
                yield canonicalize_name(requirement.name), str(requirement.specifier) or None


def size_on_disk(folder: ModelFolder) -> tuple[int, int]:
    """The model's files: how many bytes, in how many."""
    sizes = [path.stat().st_size for path in folder.path.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)
