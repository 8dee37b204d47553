from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_scorer.plugins import Plugin
from stream_scorer.plugins.loading import DEFAULT_PLUGIN, PluginError, load_plugin

WORKING = """
    from stream_scorer import plugins

    class Plugin(plugins.Plugin):
        content_types = ("application/json",)
        def decode(self, payload, content_type):
            return payload
        def predict(self, model, instances):
            return [type(self).__name__ for _ in instances]

    class Other(Plugin):
        content_types = ("image/*",)
"""


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path) -> Iterator[None]:
    """What a test imports of its own files is not there for the next."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        # Not libraries: numpy can be imported only once.
        if Path(getattr(module, "__file__", None) or tmp_path).is_relative_to(tmp_path):
            del sys.modules[name]


def write(path: Path, text: str = WORKING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def refusal(name: str) -> str:
    with pytest.raises(PluginError) as caught:
        load_plugin(name)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("suffix", "types"), [("", "application/json"), (":Other", "image/*")])
def test_a_plugin_is_loaded_from_a_file(tmp_path: Path, suffix: str, types: str) -> None:
    plugin = load_plugin(f"{write(tmp_path / 'my_plugin.py')}{suffix}")
    assert isinstance(plugin, Plugin)
    assert plugin.content_types == (types,)


@pytest.mark.parametrize(("suffix", "types"), [("", "application/json"), (":Other", "image/*")])
def test_a_plugin_is_loaded_from_a_dotted_module(tmp_path: Path, suffix: str, types: str) -> None:
    write(tmp_path / "a_package" / "__init__.py", "")
    write(tmp_path / "a_package" / "plugin.py")
    sys.path.insert(0, str(tmp_path))
    assert load_plugin(f"a_package.plugin{suffix}").content_types == (types,)


def test_a_relative_path_is_looked_for_as_the_conf_says(tmp_path: Path) -> None:
    write(tmp_path / "plugin.py")
    assert load_plugin("plugin.py", lambda path: tmp_path / path).content_types


def test_two_files_of_one_name_are_two_plugins(tmp_path: Path) -> None:
    first = load_plugin(str(write(tmp_path / "a" / "plugin.py")))
    write(tmp_path / "b" / "plugin.py", WORKING.replace("application/json", "text/csv"))
    second = load_plugin(str(tmp_path / "b" / "plugin.py"))
    assert first.content_types == ("application/json",)
    assert second.content_types == ("text/csv",)


def test_a_plugins_classes_can_be_found_by_their_modules(tmp_path: Path) -> None:
    """Which ``pickle``, ``dataclasses`` and ``typing`` rely on."""
    text = "import dataclasses\n" + textwrap.dedent(WORKING)
    text += "@dataclasses.dataclass\nclass Row:\n    x: 'int'\n"
    plugin = load_plugin(str(write(tmp_path / "plugin.py", text)))
    module = sys.modules[type(plugin).__module__]
    assert module.Row(1).x == 1


@pytest.mark.parametrize(
    "name", ["missing.py", "no/such/plugin.py", "no/such", "./missing.py:Plugin"]
)
def test_a_file_that_is_not_there_is_named(name: str) -> None:
    assert refusal(name).startswith(f"plugin {name.partition(':')[0]}: no such file")


@pytest.mark.parametrize(
    "name", ["no_such_module", "no_such_package.plugin", "json.no_such", "json.tool.no_such"]
)
def test_a_module_that_is_not_there_is_named(name: str) -> None:
    assert refusal(f"{name}:Plugin") == f"plugin {name}: no such module"


@pytest.mark.parametrize("name", ["", ":Plugin", ".", "..plugin", "a..b", "1:Plugin"])
def test_what_can_name_no_module_is_refused(name: str) -> None:
    assert refusal(name).startswith("plugin ")


def test_a_class_that_is_not_there_is_named_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "plugin.py", "Thing = 1\n")
    assert refusal(str(path)) == f"plugin {path}: there is no class Plugin"
    assert refusal(f"{path}:Thing") == f"plugin {path}: there is no class Thing"
    assert refusal("sys:Plugin") == "plugin sys: there is no class Plugin"


def test_a_class_that_is_no_plugin_is_told_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "plugin.py", "\n\nclass Plugin:\n    pass\n")
    assert refusal(str(path)) == (
        f"plugin {path}:3: class Plugin is not a stream_scorer.plugins.Plugin"
    )


def test_missing_methods_are_named_with_the_line_of_the_class(tmp_path: Path) -> None:
    text = "from stream_scorer import plugins\n\nclass Plugin(plugins.Plugin):\n    pass\n"
    path = write(tmp_path / "plugin.py", text)
    assert refusal(str(path)) == f"plugin {path}:3: class Plugin has no decode, predict"


def test_the_base_class_itself_is_no_plugin(tmp_path: Path) -> None:
    path = write(tmp_path / "plugin.py", "from stream_scorer.plugins import Plugin\n")
    assert refusal(str(path)).startswith(f"plugin {path}: class Plugin has no ")


@pytest.mark.parametrize(
    "types", ["'image/png'", "['image/png']", "()", "('png',)", "('a/',)", "('a/b/c',)", "(1,)"]
)
def test_content_types_must_be_a_tuple_of_media_types(tmp_path: Path, types: str) -> None:
    text = WORKING.replace('("application/json",)', types)
    path = write(tmp_path / "plugin.py", text)
    assert refusal(str(path)).endswith(
        ": class Plugin: content_types must be a tuple of media types"
    )


def test_missing_content_types_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "plugin.py", WORKING.replace("content_types =", "other ="))
    assert "content_types" in refusal(str(path))


@pytest.mark.parametrize("size", ["0", "-1", "'many'", "1.5", "True"])
def test_a_batch_size_that_is_none_is_told(tmp_path: Path, size: str) -> None:
    text = WORKING.replace(
        '("application/json",)', f'("application/json",); max_batch_size = {size}'
    )
    path = write(tmp_path / "plugin.py", text)
    assert refusal(str(path)).endswith(": class Plugin: max_batch_size must be at least 1")


@pytest.mark.parametrize("size", ["1", "64", "None"])
def test_a_batch_size_is_a_count_or_left_to_the_conf(tmp_path: Path, size: str) -> None:
    text = WORKING.replace(
        '("application/json",)', f'("application/json",); max_batch_size = {size}'
    )
    load_plugin(str(write(tmp_path / "plugin.py", text)))


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("x = 1\nx = 1 / 0\n", 2, "ZeroDivisionError: division by zero"),
        ("import no_such_library\n", 1, "ModuleNotFoundError: No module named 'no_such_library'"),
        (
            "\nfrom json import nothing\n",
            2,
            "ImportError: cannot import name 'nothing' from 'json'",
        ),
        ("def f():\n    return nope\n\nf()\n", 2, "NameError: name 'nope' is not defined"),
        ("x = (\n", 1, "SyntaxError: '(' was never closed"),
        ("if 1:\nx = 2\n", 2, "IndentationError: expected an indented block"),
        ("raise ValueError('first\\nsecond\\nthird')\n", 1, "ValueError: first"),
        ("raise ValueError\n", 1, "ValueError"),
        ("import sys\nsys.exit()\n", 2, "SystemExit"),
        ("import sys\n\nsys.exit(0)\n", 3, "SystemExit: 0"),
    ],
)
@pytest.mark.parametrize("how", ["file", "module"])
def test_an_error_inside_it_is_told_with_file_and_line(
    tmp_path: Path, how: str, text: str, line: int, reason: str
) -> None:
    path = write(tmp_path / "erring_plugin.py", text)
    sys.path.insert(0, str(tmp_path))
    name = str(path) if how == "file" else "erring_plugin"
    told = refusal(name)
    assert told.startswith(f"plugin {name}: {path}:{line}: {reason}")


@pytest.mark.parametrize("place", ["numbers_of/plugin.py", "numbers_of.plugin"])
def test_a_library_that_is_missing_is_not_taken_for_the_plugin(tmp_path: Path, place: str) -> None:
    """Whose name may begin like the library's: ``torch_models.plugin`` imports ``torch``."""
    write(tmp_path / "numbers_of" / "__init__.py", "")
    path = write(tmp_path / "numbers_of" / "plugin.py", "\nimport numbers_o\n")
    sys.path.insert(0, str(tmp_path))
    with pytest.raises(PluginError) as caught:
        load_plugin(place, lambda name: tmp_path / name)
    assert str(caught.value) == (
        f"plugin {place}: {path}:2: ModuleNotFoundError: No module named 'numbers_o'"
    )


def test_a_file_of_the_librarys_name_is_not_taken_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "numbers_o.py", "import numbers_o\n")
    with pytest.raises(PluginError, match=f"{path}:1: ModuleNotFoundError"):
        load_plugin("numbers_o.py", lambda name: tmp_path / name)


def test_a_missing_module_of_its_own_package_is_told_with_the_line(tmp_path: Path) -> None:
    write(tmp_path / "own" / "__init__.py", "")
    path = write(tmp_path / "own" / "plugin.py", "import own.other\n")
    sys.path.insert(0, str(tmp_path))
    assert refusal("own.plugin") == (
        f"plugin own.plugin: {path}:1: ModuleNotFoundError: No module named 'own.other'"
    )


def test_an_error_in_what_it_imports_is_told_where_it_stands(tmp_path: Path) -> None:
    helper = write(tmp_path / "own_helper.py", "\n\n1 / 0\n")
    sys.path.insert(0, str(tmp_path))
    path = write(tmp_path / "plugin.py", "\nimport own_helper\n")
    told = refusal(str(path))
    assert f"{path}:2: " in told or f"{helper}:3: " in told
    assert told.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("error", ["ValueError('no weights')", "SystemExit(0)"])
def test_a_plugin_that_cannot_be_made_is_told_with_file_and_line(
    tmp_path: Path, error: str
) -> None:
    text = (
        WORKING
        + f"    class Broken(Plugin):\n        def __init__(self):\n            raise {error}\n"
    )
    path = write(tmp_path / "plugin.py", text)
    line = path.read_text(encoding="utf-8").splitlines().index(f"        raise {error}") + 1
    assert refusal(f"{path}:Broken").startswith(
        f"plugin {path}: {path}:{line}: {error.split('(', maxsplit=1)[0]}: "
    )


def test_a_file_that_is_no_python_is_told(tmp_path: Path) -> None:
    path = tmp_path / "plugin.py"
    path.write_bytes(b"\x00\xff\xfe")
    assert refusal(str(path)).startswith(f"plugin {path}: ")
    other = write(tmp_path / "plugin.txt")
    assert refusal(str(other)).startswith(f"plugin {other}: ")


def test_an_exception_that_cannot_be_printed_is_told(tmp_path: Path) -> None:
    text = "class E(Exception):\n    def __str__(self):\n        raise ValueError\n\nraise E\n"
    path = write(tmp_path / "plugin.py", text)
    assert refusal(str(path)).startswith(f"plugin {path}: {path}:5: ")


def test_a_package_in_parts_is_allowed_where_all_of_them_are(tmp_path: Path) -> None:
    """Python looks for a module in every folder of the package's name."""
    write(tmp_path / "plugins" / "in_parts" / "good.py")
    ran = tmp_path / "ran"
    write(tmp_path / "else" / "in_parts" / "evil.py", f"open({str(ran)!r}, 'w')")
    sys.path[:0] = [str(tmp_path / "plugins"), str(tmp_path / "else")]
    roots = [str(tmp_path / "plugins")]
    for name in ("in_parts.evil", "in_parts.good"):
        with pytest.raises(PluginError, match="not within `plugin_roots"):
            load_plugin(name, roots=roots)
    assert not ran.exists()
    load_plugin("in_parts.good", roots=[*roots, str(tmp_path / "else")])


def test_a_package_within_an_allowed_folder(tmp_path: Path) -> None:
    write(tmp_path / "allowed" / "__init__.py", "")
    write(tmp_path / "allowed" / "plugin.py")
    sys.path.insert(0, str(tmp_path))
    load_plugin("allowed.plugin", roots=[str(tmp_path)])


def test_a_plugin_from_an_allowed_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "plugins" / "plugin.py")
    load_plugin(str(file), roots=["elsewhere", str(file.parent)])
    load_plugin(DEFAULT_PLUGIN, roots=["elsewhere"])


@pytest.mark.parametrize(
    "name", ["{path}/plugin.py", "{path}/plugins/link.py", "this", "json.tool"]
)
def test_a_plugin_from_elsewhere_is_refused_naming_the_rule_and_not_run(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugin.py").write_text("raise SystemExit('run')", encoding="utf-8")
    (tmp_path / "plugins" / "link.py").symlink_to(tmp_path / "plugin.py")
    name = name.format(path=tmp_path)
    roots = [str(tmp_path / "plugins")]
    with pytest.raises(PluginError) as caught:
        load_plugin(name, roots=roots)
    assert str(caught.value) == f"plugin {name}: not within `plugin_roots: [{roots[0]}]`"
