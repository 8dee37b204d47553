"""Finding a model by its URI, and deciding whether its files may be loaded.

A pickle runs any code it likes when it is read, so a model that holds one is refused unless the
conf allows it.
"""

from __future__ import annotations

import hashlib
import os
import re
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import unquote, urlsplit

import yaml

from stream_scorer.errors import SetupError
from stream_scorer.plugins.loading import AnyPlugin

REGISTRY_RETRIES: Final = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""How long MLflow tries a registry that does not answer: about 15 s in all, unless set already."""

_REGISTRY_VARIABLES: Final = frozenset({"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"})

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
_PICKLE_FORMATS: Final = frozenset({"pickle", "cloudpickle"})


class ModelError(SetupError):
    """The model is not there or may not be loaded; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's files on this machine, and what it is called.

    ``uri`` is as the conf has it; ``version`` tells which model that was: the registry's version,
    else MLflow's id of the model, else a digest of its files.
    """

    path: Path
    uri: str
    version: str
    flavors: dict[str, Any]

    @property
    def header(self) -> str:
        """The ``model`` header of every answer."""
        return f"{self.uri}; version={self.version}"


def fetch_model(uri: str, locate: Callable[[str], Path] = Path) -> ModelFolder:
    """Find a model's folder, downloading it from its registry where it is not local.

    Args:
        uri: a path, ``file:…``, ``models:/name/1``, ``models:/name@alias`` or ``runs:/…``.
        locate: finds a relative path.

    Raises:
        ModelError: it is not there, or the registry does not answer.
    """
    path = _find(uri, locate)
    if not path.is_dir():
        raise ModelError(f"model_uri {uri}: no such folder")
    description = _read_yaml(path / "MLmodel", uri)
    flavors = description.get("flavors")
    if not isinstance(flavors, dict):
        raise ModelError(f"model_uri {uri}: its MLmodel file names no flavors")
    return ModelFolder(path, uri, _version(path, description), flavors)


def fetch_requirements(uri: str, locate: Callable[[str], Path] = Path) -> Path:
    """Find a model's own requirements.txt; of a registry's model, nothing else is fetched.

    Args:
        uri: as for ``fetch_model``.
        locate: finds a relative path.

    Raises:
        ModelError: the registry does not have it, or does not answer.
    """
    return _find(uri, locate, "requirements.txt")


def load_model(plugin: AnyPlugin, folder: ModelFolder) -> Any:
    """Have the plugin load a model that was checked.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        return plugin.load_model(str(folder.path))
    except (Exception, SystemExit) as error:
        told = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        raise ModelError(f"model_uri {folder.uri}: cannot be loaded: {told}") from error


def check_model(folder: ModelFolder, *, allow_pickle: bool, trusted_types: Sequence[str]) -> None:
    """Refuse a model whose files would run code when loaded, and set MLflow's switch to match.

    Args:
        folder: the model.
        allow_pickle: take any model.
        trusted_types: types that a skops file may hold beside ``TRUSTED_TYPES``.

    Raises:
        ModelError: it holds a pickle, or a skops file with types that are not trusted.
    """
    if not allow_pickle:
        if (reason := _pickle_in(folder)) is not None:
            raise ModelError(
                f"model_uri {folder.uri}: {reason}, and a pickle can run any code; if you trust "
                "where it comes from, allow it with `model: {allow_pickle: true}` in the conf"
            )
        for file in _skops_files(folder):
            _check_skops(folder, file, trusted_types)
    os.environ[PICKLE_SWITCH] = "true" if allow_pickle or _is_skops_alone(folder) else "false"


def _find(uri: str, locate: Callable[[str], Path], file: str = "") -> Path:
    """A model's folder, or one file of it."""
    try:
        scheme = urlsplit(uri).scheme
    except ValueError as error:
        raise ModelError(f"model_uri {uri}: {error}") from None
    if scheme in {"models", "runs"}:
        return _download(uri, file)
    if scheme in {"file", ""}:
        return locate(_local_path(uri)) / file
    raise ModelError(
        f"model_uri {uri}: must be a path, file:, models:/name/version, models:/name@alias "
        "or runs:/"
    )


def _local_path(uri: str) -> str:
    # "file:samples/x" is no proper URI, but what people write.
    rest = uri.removeprefix("file:")
    return unquote(urlsplit(uri).path) if rest.startswith("//") else rest


def _download(uri: str, file: str) -> Path:
    for name, value in REGISTRY_RETRIES.items():
        os.environ.setdefault(name, value)
    from mlflow.artifacts import download_artifacts

    try:
        return Path(download_artifacts(artifact_uri=f"{uri}/{file}" if file else uri))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        # The registry's address may hold a password.
        told = re.sub(r"://[^/@\s]*@", "://", reason[0])
        if not _REGISTRY_VARIABLES & os.environ.keys():
            told += " (no registry is named: set MLFLOW_TRACKING_URI to its address)"
        raise ModelError(f"model_uri {uri}: {told}") from error


def _read_yaml(path: Path, uri: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model_uri {uri}: not an MLflow model: it has no MLmodel file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise ModelError(f"model_uri {uri}: its MLmodel file cannot be read") from None
    if not isinstance(tree, dict):
        raise ModelError(f"model_uri {uri}: its MLmodel file is not a map")
    return tree


def _version(path: Path, description: dict[str, Any]) -> str:
    # MLflow leaves this file in the folder of a registered model when it downloads it.
    registered = path / "registered_model_meta"
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        meta = yaml.safe_load(registered.read_text(encoding="utf-8"))
        if isinstance(meta, dict) and "model_version" in meta:
            return str(meta["model_version"])
    return str(description.get("model_id") or description.get("model_uuid") or _digest(path))


def _digest(path: Path) -> str:
    # Models that MLflow gave no id are told apart by their files.
    total = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.relative_to(path)} {content}\n".encode())
    return total.hexdigest()[:12]


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
        path = Path(os.path.normpath(str(place)))
        if path.is_absolute() or ".." in path.parts:
            raise ModelError(f"model_uri {folder.uri}: it names {place}, outside its folder")
        yield path


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
    return (
        flavors.keys() <= {"sklearn", "python_function"}
        and flavors.get("sklearn", {}).get("serialization_format") == "skops"
        and flavors.get("python_function", {}).get("loader_module", "mlflow.sklearn")
        == "mlflow.sklearn"
    )


def _check_skops(folder: ModelFolder, file: Path, trusted_types: Sequence[str]) -> None:
    from skops.io import get_untrusted_types

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
