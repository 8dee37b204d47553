"""Loading a plugin by the name that a conf gives it, with errors that point at the line."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from stream_scorer.errors import SetupError
from stream_scorer.plugins.original import adapted, base_class_provided, is_original
from stream_scorer.plugins.plugin import Plugin

DEFAULT_CLASS: Final = "Plugin"

DEFAULT_PLUGIN: Final = "stream_scorer.plugins.pyfunc"
"""For models whose conf names no plugin."""

AnyPlugin = Plugin[Any, Any, Any]


class PluginError(SetupError):
    """The plugin cannot be used; the text says where and why."""


def load_plugin(
    name: str, locate: Callable[[str], Path] = Path, *, roots: Sequence[str] = ()
) -> AnyPlugin:
    """Load and make the plugin that a conf names.

    Args:
        name: a file's path or a dotted module, then perhaps ``:ClassName``.
        locate: finds a relative path.
        roots: folders that plugins may be in, links followed; none: they may be anywhere.

    Raises:
        PluginError: no such file, module or class, an error inside it, something missing, or a
            place that is not allowed, of which nothing is run.
    """
    place, _, class_name = name.partition(":")
    class_name = class_name or DEFAULT_CLASS
    if (file := find_file(name, locate, roots=roots)) is not None:
        with base_class_provided():
            module = _run(place, file, lambda: _import_file(file))
    else:
        if place != DEFAULT_PLUGIN:
            _check_root(place, _top_level(place), roots, locate)
        with base_class_provided():
            module = _run(place, None, lambda: importlib.import_module(place))
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        raise PluginError(f"{_where(module)}: there is no class {class_name}")
    _check(found, module)
    path = Path(getattr(module, "__file__", None) or place)
    made = _run(place, path, found)
    if isinstance(made, Plugin):
        return made
    content_type = _run(place, path, made.request_content_type)
    if not _is_media_range(content_type):
        raise PluginError(f"{_where(module, found)}: request_content_type() gives no media type")
    return adapted(made, content_type)


def find_file(
    name: str, locate: Callable[[str], Path] = Path, *, roots: Sequence[str] = ()
) -> Path | None:
    """Find a plugin's file; ``None`` where its name is that of a module.

    Args:
        name: as for ``load_plugin``, and so the rest.
        locate: finds a relative path.
        roots: folders that plugins may be in.

    Raises:
        PluginError: no such file, or it is in a place that is not allowed.
    """
    place = name.partition(":")[0]
    if not place.endswith(".py") and "/" not in place:
        return None
    path = locate(place)
    if not path.is_file():
        raise PluginError(
            f"plugin {place}: no such file, from {Path.cwd()} or from the conf's folder"
        )
    _check_root(place, [path], roots, locate)
    return path


def _check_root(
    place: str, paths: Sequence[Path], roots: Sequence[str], locate: Callable[[str], Path]
) -> None:
    if not roots:
        return
    allowed = [locate(root).resolve() for root in roots]
    if not all(any(path.resolve().is_relative_to(root) for root in allowed) for path in paths):
        raise PluginError(f"plugin {place}: not within `plugin_roots: [{', '.join(roots)}]`")


def _top_level(module: str) -> list[Path]:
    """The folders and the file of a module's outermost package; none where there is none.

    To look further in would run that package. One without ``__init__.py`` may be in many folders.
    """
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except ValueError:
        return []
    if spec is None:
        return []
    places = [*(spec.submodule_search_locations or ()), spec.origin]
    return [Path(place) for place in places if place is not None]


def _import_file(path: Path) -> ModuleType:
    # Two files of the same name must not take each other's place among the modules.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _check(found: type, module: ModuleType) -> None:
    where = f"{_where(module, found)}: class {found.__name__}"
    if not issubclass(found, Plugin) and not is_original(found):
        raise PluginError(f"{where} is not a stream_scorer.plugins.Plugin")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise PluginError(f"{where} has no {', '.join(missing)}")
    if not issubclass(found, Plugin):
        return
    types = getattr(found, "content_types", None)
    if not isinstance(types, tuple) or not types or not all(_is_media_range(t) for t in types):
        raise PluginError(f"{where}: content_types must be a tuple of media types")
    size = found.max_batch_size
    if size is not None and (type(size) is not int or size < 1):
        raise PluginError(f"{where}: max_batch_size must be at least 1")


def _is_media_range(value: object) -> bool:
    return isinstance(value, str) and value.count("/") == 1 and all(value.split("/"))


def _run(place: str, path: Path | None, action: Callable[[], Any]) -> Any:
    # What a plugin's own code raises while it is loaded can be anything; a script exits.
    try:
        return action()
    except (Exception, SystemExit) as error:
        raise PluginError(_told(place, path, error)) from error


def _told(place: str, path: Path | None, error: Exception | SystemExit) -> str:
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    if isinstance(error, SyntaxError) and error.filename:
        return f"plugin {place}: {error.filename}:{error.lineno}: {lines[-1]}"
    # Its own name or its package's, not that of a library which it imports.
    missing = error.name if isinstance(error, ModuleNotFoundError) and path is None else None
    if missing and f"{place}.".startswith(f"{missing}."):
        return f"plugin {place}: no such module"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    inside = [f for f in frames if path is not None and Path(f.filename) == path.resolve()]
    frame = (inside or frames)[-1]
    return f"plugin {place}: {frame.filename}:{frame.lineno}: {lines[0]}"


def _where(module: ModuleType, found: type | None = None) -> str:
    where = getattr(module, "__file__", None) or module.__name__
    if found is not None and inspect.getmodule(found) is module:
        where += f":{inspect.getsourcelines(found)[1]}"
    return f"plugin {where}"
