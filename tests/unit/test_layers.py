"""The rooms of the code and which way their imports point, read from the syntax tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("stream_scorer", "http_facade")

_BASE: Final = frozenset({"errors", "failpoints", "masking", "protocol"})
_ENGINE: Final = _BASE | {
    "admission",
    "background",
    "config",
    "health",
    "kafka",
    "media_types",
    "metrics",
    "plugins",
    "scorer",
}

ROOMS: Final[Mapping[str, frozenset[str]]] = {
    "__init__": frozenset(),
    "__main__": frozenset({"cli"}),
    "errors": frozenset(),
    "failpoints": frozenset({"errors"}),
    "masking": frozenset(),
    "protocol": frozenset(),
    "admission": frozenset(),
    "background": frozenset(),
    "config": _BASE,
    "plugins": _BASE | {"media_types"},
    "media_types": _BASE,
    "scorer": _BASE | {"media_types", "plugins"},
    "timing": _BASE | {"scorer"},
    "kafka": _BASE | {"background", "config"},
    "metrics": _BASE | {"config"},
    "build_context": _BASE | {"config", "plugins"},
    "docker": _BASE,
    "health": _BASE | {"config", "metrics"},
    "worker": _ENGINE,
    "supervisor": _ENGINE | {"worker"},
    "logs": _BASE | {"config"},
    "warm_up": _BASE | {"plugins", "scorer"},
    "cli": _ENGINE
    | {"build_context", "docker", "http_facade", "logs", "supervisor", "timing", "warm_up"}
    | {"worker"},
    "http_facade": _BASE | {"config", "kafka", "logs"},
}
"""Each room (a file or folder of ``stream_scorer``, or ``http_facade``) and what it may import."""

_PLUGINS: Final = ("stream_scorer/plugins/",)

LIBRARIES: Final[Mapping[str, tuple[str, ...]]] = {
    "confluent_kafka": (
        "stream_scorer/kafka/",
        "http_facade/client.py",
        "http_facade/replies.py",
        "http_facade/reply_log.py",
        "http_facade/requests.py",
    ),
    # Beside the facade, only its media types, where content types are matched.
    "falcon": ("http_facade/",),
    "falcon.mediatypes": (
        "http_facade/",
        "stream_scorer/scorer.py",
        "stream_scorer/media_types.py",
    ),
    "mlflow": _PLUGINS,
    "numpy": _PLUGINS,
    "PIL": _PLUGINS,
    "keras": _PLUGINS,
    "onnx": _PLUGINS,
    "onnxruntime": _PLUGINS,
    "pandas": _PLUGINS,
    "sklearn": _PLUGINS,
    "skops": _PLUGINS,
    "tensorflow": _PLUGINS,
}
"""Where each library may be imported: the names of files, or of folders with all under them."""

HEAVY: Final = frozenset(
    {"keras", "mlflow", "onnx", "onnxruntime", "pandas", "sklearn", "skops", "tensorflow"}
)
"""Libraries that take long to import: never before a function needs them."""

MAY_CATCH_EVERYTHING: Final = frozenset(
    {
        "stream_scorer/background.py",
        "stream_scorer/plugins/loading.py",
        "stream_scorer/plugins/models.py",
        "stream_scorer/plugins/trust.py",
        "stream_scorer/scorer.py",
    }
)
"""Where code that is not ours runs; docs/decisions/0001 says why."""


@dataclass(frozen=True, slots=True)
class Import:
    """An imported dotted name; ``at_start`` when it happens as the module itself is imported."""

    name: str
    line: int
    at_start: bool


def imports(node: ast.AST, package: str, *, at_start: bool = True) -> Iterator[Import]:
    """All imports under ``node``, which stands in a module of ``package`` (a dotted name)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_start)
        elif isinstance(child, ast.ImportFrom):
            parents = package.split(".")
            origin = parents[: len(parents) - child.level + 1] if child.level else []
            base = ".".join([*origin, *([child.module] if child.module else [])])
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, at_start)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for statement in child.body:
                yield from imports(
                    ast.Module([statement], type_ignores=[]), package, at_start=False
                )
            yield from imports(
                ast.Module(child.orelse, type_ignores=[]), package, at_start=at_start
            )
        else:
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(child, package, at_start=at_start and not lazy)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def room_of(dotted: str) -> str | None:
    """The room that a dotted name of ours lies in; ``None`` for somebody else's name."""
    package, _, rest = dotted.partition(".")
    if package == "http_facade":
        return package
    if package != "stream_scorer":
        return None
    first = rest.partition(".")[0]
    # What __init__.py itself holds, such as __version__, may be imported by all.
    return first if first and first not in {"__version__", "*"} else "__init__"


def library_of(dotted: str) -> str | None:
    """The longest name in ``LIBRARIES`` that a dotted name is or lies within."""
    within = (name for name in LIBRARIES if dotted == name or dotted.startswith(f"{name}."))
    return max(within, key=len, default=None)


def catches_everything(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        ast.unparse(each).rpartition(".")[2] in {"Exception", "BaseException"} for each in caught
    )


def breaches(file: str, source: str) -> Iterator[tuple[int, str]]:
    """The line and the words of each breach in one file, named as it is from the root."""
    tree = ast.parse(source, file)
    module = file.removesuffix(".py").replace("/", ".")
    room = room_of(module)
    if room is None or room not in ROOMS:
        yield 1, "is in no room: say in ROOMS what it may import"
        return
    for imported in imports(tree, module.rpartition(".")[0]):
        target = room_of(imported.name)
        if target not in {None, room, "__init__"} and target not in ROOMS[room]:
            yield imported.line, f"{room} must not import {target}"
        library = library_of(imported.name)
        if library is not None and not file.startswith(LIBRARIES[library]):
            yield imported.line, f"{library} is only for {' and '.join(LIBRARIES[library])}"
        if imported.at_start and imported.name.partition(".")[0] in HEAVY:
            yield imported.line, f"{imported.name} is heavy: import it where it is used"
    if file not in MAY_CATCH_EVERYTHING:
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and catches_everything(node):
                yield node.lineno, "must not catch everything"


def violations(root: Path) -> list[str]:
    """Every breach of the rules above under ``root``, each as ``file:line: what``."""
    found = []
    matching = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            source = path.read_text(encoding="utf-8")
            found += [f"{file}:{line}: {words}" for line, words in breaches(file, source)]
            if package == "stream_scorer" and any(
                library_of(imported.name) == "falcon.mediatypes"
                for imported in imports(ast.parse(source), package)
            ):
                matching.append(file)
    if len(matching) > 1:
        found.append(f"{' and '.join(matching)}: content types are matched in one place")
    return found


def test_imports_point_the_right_way() -> None:
    assert "\n".join(violations(ROOT)) == ""


@pytest.mark.parametrize(
    ("file", "source", "breach"),
    [
        ("stream_scorer/worker.py", "import confluent_kafka", "confluent_kafka is only for"),
        ("stream_scorer/cli/a.py", "def f():\n  from confluent_kafka import Consumer", ":2: conf"),
        ("http_facade/app.py", "from confluent_kafka.admin import AdminClient", "only for"),
        ("http_facade/client.py", "import numpy as np", "numpy is only for"),
        ("http_facade/app.py", "def f():\n  import mlflow.pyfunc", "mlflow is only for"),
        ("http_facade/app.py", "from stream_scorer.plugins import Plugin", "not import plugins"),
        ("http_facade/app.py", "from stream_scorer import worker", "must not import worker"),
        ("http_facade/app.py", "import stream_scorer.scorer", "must not import scorer"),
        ("stream_scorer/kafka/a.py", "from stream_scorer.scorer import Scorer", "import scorer"),
        ("stream_scorer/kafka/a.py", "from ..worker import Worker", "kafka must not import worker"),
        ("stream_scorer/kafka/__init__.py", "from ..worker import Worker", "not import worker"),
        ("stream_scorer/scorer.py", "from stream_scorer.kafka.topics import O", "import kafka"),
        ("stream_scorer/scorer.py", "from .kafka import offsets", "must not import kafka"),
        ("stream_scorer/scorer.py", "import http_facade", "must not import http_facade"),
        ("stream_scorer/scorer.py", "import falcon", "falcon is only for"),
        ("stream_scorer/scorer.py", "from falcon import Request", "falcon is only for"),
        ("stream_scorer/config.py", "from falcon import mediatypes", "falcon.mediatypes is only"),
        ("stream_scorer/protocol.py", "from stream_scorer.config import Settings", "not import"),
        ("stream_scorer/__init__.py", "from stream_scorer.protocol import Request", "not import"),
        ("stream_scorer/plugins/a.py", "import mlflow", "mlflow is heavy"),
        ("stream_scorer/plugins/a.py", "class A:\n  import pandas", ":2: pandas is heavy"),
        ("stream_scorer/plugins/a.py", "try:\n  import skops.io\nfinally: pass", "skops.io is he"),
        ("stream_scorer/worker.py", "if 1:\n  from sklearn import tree", "sklearn is only for"),
        ("stream_scorer/brand_new.py", "", "is in no room"),
        ("stream_scorer/worker.py", "try: f()\nexcept Exception: pass", ":2: must not"),
        (
            "stream_scorer/worker.py",
            "try: f()\nexcept (OSError, BaseException): pass",
            ":2: must not",
        ),
        ("http_facade/app.py", "try: f()\nexcept: pass", ":2: must not"),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, file: str, source: str, breach: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text(source, encoding="utf-8")
    found = violations(tmp_path)
    assert any(breach in line for line in found), found
    assert all(line.startswith(file) for line in found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("stream_scorer/kafka/a.py", "from confluent_kafka import Consumer"),
        ("http_facade/client.py", "from stream_scorer.kafka.clients import f"),
        ("http_facade/app.py", "import falcon.asgi\nfrom stream_scorer import __version__"),
        ("stream_scorer/scorer.py", "from falcon import mediatypes"),
        ("stream_scorer/scorer.py", "from falcon.mediatypes import quality"),
        ("stream_scorer/scorer.py", "try: f()\nexcept Exception: pass"),
        ("stream_scorer/plugins/a.py", "import numpy as np\ndef f():\n  import mlflow.pyfunc"),
        ("stream_scorer/plugins/a.py", "if TYPE_CHECKING:\n  import pandas as pd"),
        ("stream_scorer/kafka/a.py", "from . import offsets\nfrom ..config import Settings"),
        ("stream_scorer/worker.py", "from stream_scorer.kafka.topics import O\nimport onnx_like"),
    ],
)
def test_what_the_rules_allow_is_not_a_breach(tmp_path: Path, file: str, source: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text(source, encoding="utf-8")
    assert violations(tmp_path) == []


def test_content_types_matched_in_two_places_are_found(tmp_path: Path) -> None:
    package = tmp_path / "stream_scorer"
    package.mkdir()
    for name in ("scorer.py", "media_types.py"):
        (package / name).write_text("from falcon import mediatypes", encoding="utf-8")
    assert any("matched in one place" in line for line in violations(tmp_path))


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a statement brings into a fresh interpreter."""
    program = (
        f"import sys; before = set(sys.modules); {statement}; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_costs_nothing() -> None:
    assert imported_by("import stream_scorer") == {"stream_scorer"}


def test_importing_what_sets_logging_up_costs_nothing() -> None:
    brought = imported_by("import stream_scorer.logs")
    assert brought - imported_by("import logging, threading, typing") == {"stream_scorer"}


@pytest.mark.parametrize(
    "statement",
    [
        "from stream_scorer.cli import main",
        "import stream_scorer.worker, stream_scorer.scorer",
        "import http_facade.app",
    ],
)
def test_importing_a_program_brings_nothing_heavy(statement: str) -> None:
    brought = imported_by(statement)
    assert "stream_scorer" in brought
    assert brought.isdisjoint(HEAVY | {"numpy"} if "http_facade" in statement else HEAVY)


def test_what_is_brought_is_seen() -> None:
    assert "sqlite3" in imported_by("import sqlite3")
