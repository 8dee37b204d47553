"""What ``docker build`` makes an image of: a conf with its plugin, packages and model.

Nothing in it is secret: what a conf has by reference stays a reference, and what was downloaded
with somebody's credentials is there without them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from stream_scorer.config import ConfigError, Settings, literal_secrets
from stream_scorer.errors import SetupError
from stream_scorer.masking import mask_credentials
from stream_scorer.plugins.loading import find_file
from stream_scorer.plugins.models import ModelFolder, fetch_model, is_in_registry
from stream_scorer.plugins.packages import Package
from stream_scorer.plugins.trust import check_root

CONF: Final = "conf.yaml"
_PACKAGES: Final = "packages.txt"
_PLUGIN: Final = "plugin"
_EXAMPLES: Final = "examples"
_PLACES: Final = ("models", "runs", "model", _PLUGIN, _EXAMPLES)
"""Folders, in the order of layers: what is large and changes seldom comes first."""

_INSTALL: Final = """\
FROM {base} AS packages
USER 0:0
# Given with --build-arg, for this step alone: nothing of it is in the image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ENV PIP_NO_CACHE_DIR=1 SCORER_ENVIRONMENTS=/opt/environments
WORKDIR /build
COPY {packages} ./
RUN mkdir "$SCORER_ENVIRONMENTS" \\
    && echo "packages: [{packages}]" >conf.yaml \\
    && stream-scorer install --conf conf.yaml

"""
_BEGIN: Final = """\
FROM {base}
WORKDIR /app
# As the facade it has to listen on its container's address, whatever its conf says.
ENV SCORER_CONF=/app/{conf} SCORER_HOST=0.0.0.0
"""
_INSTALLED: Final = """\
ENV SCORER_ENVIRONMENTS=/opt/environments
COPY --from=packages /opt/environments /opt/environments
"""


def write_context(
    folder: Path,
    base: str,
    conf: Mapping[str, Any],
    settings: Settings,
    packages: Sequence[Package],
    include: Sequence[Path] = (),
) -> ModelFolder:
    """Write the files of an image, a Dockerfile among them.

    Args:
        folder: where to, an empty folder.
        base: the image that it starts from: a worker's.
        conf: the conf as it is written.
        settings: what it comes to; the plugin, the packages and the model are those of here.
        packages: what is installed into the image.
        include: what the plugin's folder holds beside it and the plugin reads: files, folders.

    Returns:
        The model, in the context.

    Raises:
        SetupError: a plugin, a model or a file is not there, not allowed or cannot be copied, or a
            secret stands in the conf itself.
    """
    try:
        return _write(folder, base, conf, settings, packages, include)
    except OSError as error:
        # Of copying a folder it is all that failed: where from, where to, why.
        failed = error.args[0] if isinstance(error, shutil.Error) else None
        told = failed[0][2] if isinstance(failed, list) else error
        raise SetupError(f"cannot be copied: {told}") from None


def _write(
    folder: Path,
    base: str,
    conf: Mapping[str, Any],
    settings: Settings,
    packages: Sequence[Package],
    include: Sequence[Path],
) -> ModelFolder:
    if settings.model_uri is None:
        raise ConfigError("which model scores must be set @ model_uri")
    uri = settings.model_uri
    check_root(uri, settings.model.roots, settings.locate)
    baked = {
        **conf,
        **_plugin(folder, settings, include),
        **_packages(folder, packages),
        **_examples(folder, conf, settings),
    }
    model = _model(folder, uri, settings)
    place = model.path.relative_to(folder)
    trust = settings.model.model_dump(mode="json", exclude_unset=True)
    if settings.model.roots:
        trust["roots"] = [place.parts[0]]
    baked |= {"model_uri": str(place), "model": trust or None}
    baked = {key: value for key, value in baked.items() if value is not None}
    if secrets := literal_secrets(baked):
        raise ConfigError(
            "a secret would be in the image: write ${env:NAME} or ${file:PATH} in its place @ "
            + ", ".join(secrets)
        )
    text = yaml.safe_dump(baked, sort_keys=False, allow_unicode=True)
    (folder / CONF).write_text(f"# Written by stream-scorer build-image.\n{text}", "utf-8")
    dockerfile = "".join(_dockerfile(folder, base, model))
    (folder / "Dockerfile").write_text(dockerfile, encoding="utf-8")
    for path in (folder, *folder.rglob("*")):
        # Whoever it runs as, not who built it, reads them.
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    return model


def _plugin(folder: Path, settings: Settings, include: Sequence[Path]) -> dict[str, Any]:
    """Copy the plugin; return the keys that name it, whatever the conf has."""
    name = settings.plugin
    file = name and find_file(name, settings.locate, roots=settings.plugin_roots)
    if not name or not file:
        if include:
            raise SetupError("only a plugin that is a file has others beside it @ --include")
        return {"plugin": name, "plugin_roots": list(settings.plugin_roots) or None}
    plugins = folder / _PLUGIN
    plugins.mkdir()
    shutil.copyfile(file, plugins / file.name)
    for path in include:
        _copy(path, plugins / _beside(path, file))
    _, colon, class_name = name.partition(":")
    return {
        "plugin": f"{_PLUGIN}/{file.name}{colon}{class_name}",
        "plugin_roots": [_PLUGIN] if settings.plugin_roots else None,
    }


def _beside(path: Path, plugin: Path) -> Path:
    """Where a path is from the plugin's folder."""
    try:
        return path.resolve().relative_to(plugin.parent.resolve())
    except ValueError:
        raise SetupError(f"{path} is not in the plugin's folder @ --include") from None


def _packages(folder: Path, packages: Sequence[Package]) -> dict[str, Any]:
    """Write one list of them all; return the key that names it."""
    for package in packages:
        if package.shown != str(package.requirement):
            raise ConfigError(
                f"{package.shown}: its credentials would be in the image; give pip an index with "
                "--build-arg PIP_INDEX_URL @ packages"
            )
    if not packages:
        return {"packages": None}
    lines = dict.fromkeys(package.line for package in packages)
    (folder / _PACKAGES).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {"packages": [_PACKAGES]}


def _examples(folder: Path, conf: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Copy the facade's examples; return the section that names them."""
    if not settings.facade.examples:
        return {}
    section = dict(conf.get("facade") or {})
    section["examples"] = dict(section.get("examples") or {})
    (folder / _EXAMPLES).mkdir()
    for number, (media_type, name) in enumerate(settings.facade.examples.items(), 1):
        file = settings.locate(name)
        place = f"{_EXAMPLES}/{number}{file.suffix}"
        shutil.copyfile(file, folder / place)
        section["examples"][media_type] = place
    return {"facade": section}


def _model(folder: Path, uri: str, settings: Settings) -> ModelFolder:
    """Copy or download the model.

    One of a registry goes where its URI says (``models/wine/3``): every answer names it so.
    """
    if not is_in_registry(uri):
        found = fetch_model(uri, settings.locate)
        place = folder / "model"
        shutil.copytree(found.path, place, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        downloads = folder / "downloads"
        found = fetch_model(uri, into=downloads)
        parts = urlsplit(uri)
        steps = [step for step in parts.path.split("/") if step not in {"", ".", ".."}]
        place = folder.joinpath(parts.scheme, *steps)
        place.parent.mkdir(parents=True)
        shutil.move(found.path, place)
        shutil.rmtree(downloads, ignore_errors=True)
    return ModelFolder(place, uri, found.version, found.flavors)


def _copy(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        # A folder's .git and .env are the project's, not the plugin's.
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(path, place, ignore=ignored, dirs_exist_ok=True)
    else:
        shutil.copy(path, place)


def _dockerfile(folder: Path, base: str, model: ModelFolder) -> Iterator[str]:
    packages = (folder / _PACKAGES).is_file()
    if packages:
        yield _INSTALL.format(base=base, packages=_PACKAGES)
    yield _BEGIN.format(base=base, conf=CONF)
    if packages:
        yield _INSTALLED
    for place in _PLACES:
        if (folder / place).exists():
            yield f"COPY {place} {place}/\n"
    yield f"COPY {' '.join([CONF, *([_PACKAGES] if packages else [])])} ./\n"
    labels = {
        "org.opencontainers.image.base.name": base,
        "stream-scorer.model.uri": mask_credentials(model.uri),
        "stream-scorer.model.version": model.version,
    }
    yield f"LABEL {' '.join(f'{name}={_quoted(value)}' for name, value in labels.items())}\n"


def _quoted(text: str) -> str:
    # Docker would fill in variables.
    return json.dumps(text, ensure_ascii=False).replace("$", r"\$")
