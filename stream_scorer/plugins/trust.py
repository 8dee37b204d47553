"""Deciding whether a model's files may be loaded.

A pickle runs any code it likes when it is read, and so may code that a model brings along; a model
that holds either is refused unless the conf allows it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final
from urllib.parse import unquote, urlsplit

from stream_scorer.plugins.models import (
    ModelError,
    ModelFolder,
    is_in_registry,
    is_within,
    local_path,
)

PICKLE_SWITCH: Final = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"

TRUSTED_TYPES: Final = frozenset(
    {
        "numpy.dtype",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.cluster._bisect_k_means._BisectingTree",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.gaussian_process.kernels.Sum",
        "sklearn.gaussian_process.kernels.WhiteKernel",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._dist_metrics.MinkowskiDistance64",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
    }
)
"""Types that fitted scikit-learn estimators are made of and skops does not trust by itself.

They hold numbers and run nothing of the file's choosing. Found by fitting every estimator of
scikit-learn 1.9 and asking skops; functions, which some estimators hold, are left out on purpose.
"""

_PICKLE_SUFFIXES: Final = frozenset(
    {".pkl", ".pickle", ".cloudpickle", ".joblib", ".dill", ".pt", ".pth"}
)
_REGISTRIES: Final = ("models:", "runs:")
_PICKLE_FORMATS: Final = frozenset({"pickle", "cloudpickle"})
_LOADERS: Final = frozenset(
    f"mlflow.{name}"
    for name in (
        *("catboost", "keras", "lightgbm", "onnx", "paddle", "pmdarima", "prophet"),
        *("pyfunc.model", "pytorch", "sklearn", "statsmodels", "tensorflow", "xgboost"),
    )
)
"""Those of MLflow's loaders that read data, or pickles, which its switch keeps them from.

The others' libraries import or build what a model's files name.
"""
_NAMING_A_CLASS: Final = frozenset({"lightgbm", "xgboost"})
"""Flavors that name their model's class, which MLflow imports and calls, whatever it is."""
_KERAS: Final = frozenset({"keras", "tensorflow", "tf_keras"})
"""The libraries with a Keras; a TensorFlow model names the module, which MLflow imports."""
_SAVED_MODELS: Final = frozenset({"saved_model.pb", "saved_model.pbtxt", "saved_model.cpb"})


def check_root(uri: str, roots: Sequence[str], locate: Callable[[str], Path] = Path) -> None:
    """Refuse a model from elsewhere than the allowed places, before anything of it is fetched.

    Args:
        uri: the model's.
        roots: folders, and beginnings of registry URIs such as ``models:/`` or ``models:/wine``;
            none: models may come from anywhere.
        locate: finds a relative path.

    Raises:
        ModelError: it is in none of them, links followed.
    """
    if roots and not any(_is_under(uri, root, locate) for root in roots):
        raise ModelError(
            f"model_uri {uri}: not within `model: {{roots: [{', '.join(roots)}]}}` of the conf"
        )


def _is_under(uri: str, root: str, locate: Callable[[str], Path]) -> bool:
    # A registry's URI is one to MLflow also with blanks before it and in capitals. As text it is
    # then under no root.
    if root.startswith(_REGISTRIES) or is_in_registry(uri):
        if ".." in unquote(urlsplit(uri).path).split("/"):
            return False
        ends = root if root.endswith(("/", ":")) else (f"{root}/", f"{root}@")
        return uri == root or uri.startswith(ends)
    place, allowed = (locate(local_path(each)).resolve() for each in (uri, root))
    return place.is_relative_to(allowed)


def check_model(
    folder: ModelFolder,
    *,
    allow_pickle: bool,
    allow_code: bool,
    trusted_types: Sequence[str],
) -> None:
    """Refuse a model whose files would run code when loaded, and set MLflow's switch to match.

    Args:
        folder: the model.
        allow_pickle: take any model, since a pickle can run any code.
        allow_code: take a model that brings code of its own, or may have other code run.
        trusted_types: types that a skops file may hold beside ``TRUSTED_TYPES``.

    Raises:
        ModelError: it holds a pickle, code, or a skops file with types that are not trusted.
    """
    if not allow_pickle:
        if (reason := _pickle_in(folder)) is not None:
            raise ModelError(
                f"model_uri {folder.uri}: {reason}, and a pickle can run any code; if you trust "
                "where it comes from, allow it with `model: {allow_pickle: true}` in the conf"
            )
        if not allow_code and (reason := _code_in(folder)) is not None:
            raise ModelError(
                f"model_uri {folder.uri}: {reason}, and so it can run any code; if you trust "
                "where it comes from, allow it with `model: {allow_code: true}` in the conf"
            )
        for file in _skops_files(folder):
            _check_skops(folder, file, trusted_types)
    os.environ[PICKLE_SWITCH] = "true" if allow_pickle or _is_skops_alone(folder) else "false"


def _code_in(folder: ModelFolder) -> str | None:
    for name, flavor in folder.flavors.items():
        if not isinstance(flavor, dict):
            continue
        if flavor.get("model_code_path"):
            return f"its {name} flavor is Python code"
        if flavor.get("code"):
            return f"its {name} flavor brings Python code along"
        loader = flavor.get("loader_module")
        if loader is not None and str(loader) not in _LOADERS:
            return f"its {name} flavor is loaded by {loader}, which reads more than data"
        made = flavor.get("model_class")
        if name in _NAMING_A_CLASS and made and not str(made).startswith(f"{name}."):
            return f"its {name} flavor is a {made}, not a class of {name}"
        keras = flavor.get("keras_module")
        if keras is not None and not _is_of_keras(str(keras)):
            return f"its {name} flavor is loaded by {keras}, which is not Keras"
        for place in flavor.values():
            if isinstance(place, str) and not is_within(place):
                return f"its {name} flavor names {place}, outside its folder"
    return _code_among_files(folder)


def _code_among_files(folder: ModelFolder) -> str | None:
    description = folder.path / "MLmodel"
    for file in _files(folder):
        told = f"its file {file.relative_to(folder.path)}"
        match file.name.lower():
            case "mlmodel" if not file.samefile(description):
                # Whichever folder MLflow's loader is sent to, it believes the description there.
                return f"{told} describes another model"
            case "keras_module.txt" if not _is_of_keras(file.read_text("utf-8", "replace")):
                return f"{told} names a module that is not Keras"
            case "pickle_module_info.txt":
                # PyTorch's: MLflow imports it before it looks for the pickle.
                return f"{told} names a module that reads pickles"
            case saved if saved in _SAVED_MODELS:
                # Among the operations of a graph are those that read and write files.
                return f"{told} is a graph of TensorFlow"
    return None


def _is_of_keras(module: str) -> bool:
    return module.partition(".")[0] in _KERAS


def _pickle_in(folder: ModelFolder) -> str | None:
    for name, flavor in folder.flavors.items():
        form = flavor.get("serialization_format") if isinstance(flavor, dict) else None
        if form in _PICKLE_FORMATS:
            return f"its {name} flavor is saved as {form}"
    for file in _files(folder):
        told = f"its file {file.relative_to(folder.path)}"
        try:
            found = _is_pickle(file.name, file.open("rb")) or any(
                _is_pickle(member, opened) for member, opened in _members(file)
            )
        except Exception as error:
            # Another reader may be less particular.
            raise ModelError(
                f"model_uri {folder.uri}: {told} cannot be looked into for pickles"
            ) from error
        if found:
            return f"{told} is a pickle"
    return None


def _is_pickle(name: str, opened: IO[bytes]) -> bool:
    with opened:
        start = opened.read(2)
    # The PROTO opcode and a protocol number: how every pickle since protocol 2 begins.
    begins = len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5
    return begins or Path(name).suffix.lower() in _PICKLE_SUFFIXES


def _members(file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files within a file that is a zip archive, as most models' formats are."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for item in archive.infolist():
                yield item.filename, archive.open(item)


def _files(folder: ModelFolder) -> Iterator[Path]:
    # Links are followed, as MLflow does: folders mounted in containers hold them.
    seen = set()
    for place, folders, names in os.walk(folder.path, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(place, name)).is_file())


def _skops_files(folder: ModelFolder) -> Iterator[Path]:
    named = {folder.path / name for name in _named_files(folder)}
    for file in _files(folder):
        if file.suffix.lower() == ".skops" or file in named or _is_skops(file):
            yield file


def _named_files(folder: ModelFolder) -> Iterator[Path]:
    """The files that a model in skops' format is read from, by its description."""
    flavor = folder.flavors.get("sklearn")
    if not isinstance(flavor, dict) or flavor.get("serialization_format") != "skops":
        return
    places = [flavor.get("pickled_model")]
    if isinstance(pyfunc := folder.flavors.get("python_function"), dict):
        places.append(pyfunc.get("model_path"))
    for place in places:
        if not is_within(str(place)):
            raise ModelError(f"model_uri {folder.uri}: it names {place}, outside its folder")
        yield Path(str(place))


def _is_skops(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return "schema.json" in archive.namelist()


def _is_skops_alone(folder: ModelFolder) -> bool:
    """Whether MLflow, as described, reads nothing of the model but the skops files checked here.

    Its own switch counts skops files as pickles; to open it lets pickles pass too, also those
    that cannot be told from other files.
    """
    flavors = {
        name: item if isinstance(item, dict) else {} for name, item in folder.flavors.items()
    }
    pyfunc = flavors.get("python_function", {})
    return (
        flavors.keys() <= {"sklearn", "python_function"}
        and flavors.get("sklearn", {}).get("serialization_format") == "skops"
        and pyfunc.get("loader_module", "mlflow.sklearn") == "mlflow.sklearn"
        # That would be another folder, with a description of its own.
        and "data" not in pyfunc
    )


def _check_skops(folder: ModelFolder, file: Path, trusted_types: Sequence[str]) -> None:
    try:
        from skops.io import get_untrusted_types
    except ModuleNotFoundError as error:
        raise ModelError(
            f"model_uri {folder.uri}: {file.name} is a skops file: {error}; add what is missing to "
            "`packages` in the conf"
        ) from error
    try:
        found = get_untrusted_types(file=file)
    except Exception as error:
        raise ModelError(
            f"model_uri {folder.uri}: {file.name} is not a skops file ({type(error).__name__})"
        ) from error
    if untrusted := sorted(set(found) - TRUSTED_TYPES - set(trusted_types)):
        raise ModelError(
            f"model_uri {folder.uri}: it holds types that are not trusted: {', '.join(untrusted)}; "
            "if you trust them, add them to `model: {trusted_types: […]}` in the conf"
        )
