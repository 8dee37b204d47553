"""Finding a model by its URI, and loading it once it may be trusted."""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import yaml

from stream_scorer.errors import SetupError
from stream_scorer.masking import mask_credentials
from stream_scorer.plugins.loading import AnyPlugin

REGISTRY_RETRIES: Final = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""How long MLflow tries a registry that does not answer: about 15 s in all, unless set already."""

_REGISTRY_VARIABLES: Final = frozenset({"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"})


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


def fetch_model(
    uri: str, locate: Callable[[str], Path] = Path, *, into: Path | None = None
) -> ModelFolder:
    """Find a model's folder, downloading it from its registry where it is not local.

    Args:
        uri: a path, ``file:…``, ``models:/name/1``, ``models:/name@alias`` or ``runs:/…``.
        locate: finds a relative path.
        into: the folder that a registry's model is downloaded to; ``None``: where MLflow likes.

    Raises:
        ModelError: it is not there, or the registry does not answer.
    """
    path = _find(uri, locate, into=into)
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


def is_within(place: str) -> bool:
    """Whether a path that a model's description names stays in its folder."""
    path = Path(place)
    return not path.is_absolute() and ".." not in path.parts


def is_in_registry(uri: str) -> bool:
    """Whether MLflow is asked for a model, as its own reading of the URI has it.

    Raises:
        ModelError: it is no URI.
    """
    return _scheme(uri) in {"models", "runs"}


def _scheme(uri: str) -> str:
    try:
        return urlsplit(uri).scheme
    except ValueError as error:
        raise ModelError(f"model_uri {uri}: {error}") from None


def _find(
    uri: str, locate: Callable[[str], Path], file: str = "", into: Path | None = None
) -> Path:
    """A model's folder, or one file of it."""
    if is_in_registry(uri):
        return _download(uri, file, into)
    if _scheme(uri) in {"file", ""}:
        return locate(local_path(uri)) / file
    raise ModelError(
        f"model_uri {uri}: must be a path, file:, models:/name/version, models:/name@alias "
        "or runs:/"
    )


def local_path(uri: str) -> str:
    """The path in a ``file:`` URI, or the path that it is."""
    # "file:samples/x" is no proper URI, but what people write.
    rest = uri.removeprefix("file:")
    return unquote(urlsplit(uri).path) if rest.startswith("//") else rest


def _download(uri: str, file: str, into: Path | None) -> Path:
    for name, value in REGISTRY_RETRIES.items():
        os.environ.setdefault(name, value)
    from mlflow.artifacts import download_artifacts

    try:
        place = download_artifacts(
            artifact_uri=f"{uri}/{file}" if file else uri,
            dst_path=None if into is None else str(into),
        )
        return Path(place)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        # The registry's address may hold a password, that of a store a signature.
        told = mask_credentials(reason[0])
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
