from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stream_scorer.plugins import Plugin
from stream_scorer.plugins.loading import PluginError, load_plugin
from stream_scorer.protocol import Request, Status
from stream_scorer.scorer import Scorer

PACKAGE = "mlflow_pluggable_scoring_server"

ORIGINAL = f"""
    import json
    from {PACKAGE}.plugin import BasePlugin

    class Plugin(BasePlugin):
        def load_model(self, model_uri):
            return {{"uri": model_uri, "calls": []}}

        def predict(self, model, data):
            model["calls"].append(data)
            return json.dumps(sum(json.loads(data)))

        def request_content_type(self):
            return "application/json"
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


def load(folder: Path, text: str = ORIGINAL) -> Plugin[Any, Any, Any]:
    path = folder / "plugin.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return load_plugin(str(path))


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(PluginError) as caught:
        load(folder, text)
    return str(caught.value)


def score(plugin: Plugin[Any, Any, Any], *payloads: bytes) -> list[tuple[Status, str, bytes]]:
    scorer = Scorer(
        plugin,
        plugin.load_model("there"),
        payload_bytes=1000,
        result_bytes=1000,
        max_batch_size=512,
    )
    requests = [
        Request(
            topic="requests",
            partition=0,
            offset=offset,
            key=None,
            payload=payload,
            headers=[],
            content_type=plugin.content_types[0],
        )
        for offset, payload in enumerate(payloads)
    ]
    answers = scorer.score(requests)
    return [(answer.status, answer.content_type, answer.body) for answer in answers]


def test_it_is_scored_a_call_for_each_request(tmp_path: Path) -> None:
    plugin = load(tmp_path)
    model = plugin.load_model("there")
    assert model["uri"] == "there"
    assert plugin.content_types == ("application/json",)
    assert plugin.max_batch_size == 1
    assert plugin.predict(model, [b"[1, 2]"]) == ["3"]
    assert model["calls"] == [b"[1, 2]"]
    assert score(plugin, b"[1, 2]", b"[4]") == [
        (Status.OK, "application/json", b"3"),
        (Status.OK, "application/json", b"4"),
    ]


def test_it_need_not_derive_from_the_base_class(tmp_path: Path) -> None:
    text = textwrap.dedent(ORIGINAL).replace("(BasePlugin)", "")
    text = text.replace(f"from {PACKAGE}.plugin import BasePlugin", "")
    assert score(load(tmp_path, text), b"[1, 2]")[0][2] == b"3"


def test_it_is_loaded_from_a_dotted_module_too(tmp_path: Path) -> None:
    (tmp_path / "from_the_original.py").write_text(textwrap.dedent(ORIGINAL), encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    assert score(load_plugin("from_the_original"), b"[1]")[0][2] == b"1"


@pytest.mark.parametrize(
    ("result", "content_type", "body"),
    [
        ('\'{"a": "ü"}\'', "application/json", '{"a": "ü"}'.encode()),
        ("b'\\x00\\x01'", "application/octet-stream", b"\x00\x01"),
        ("bytearray(b'ab')", "application/octet-stream", b"ab"),
        ("[1, 2.5]", "application/json", b"[1,2.5]"),
        ("{'a': None}", "application/json", b'{"a":null}'),
        ("__import__('numpy').arange(3)", "application/json", b"[0,1,2]"),
    ],
)
def test_what_it_gives_is_sent_as_its_type_says(
    tmp_path: Path, result: str, content_type: str, body: bytes
) -> None:
    plugin = load(tmp_path, ORIGINAL.replace("json.dumps(sum(json.loads(data)))", result))
    assert score(plugin, b"[1]") == [(Status.OK, content_type, body)]


@pytest.mark.parametrize(
    "payload",
    [b"[1", b"one", b"\xff\xfe\x00", b"[" * 100_000, b"{'a': 1}"],
    ids=lambda text: repr(text[:9]),
)
def test_what_is_no_json_is_the_caller_s_fault(tmp_path: Path, payload: bytes) -> None:
    plugin = load(tmp_path)
    scorer = Scorer(
        plugin, plugin.load_model(""), payload_bytes=10**6, result_bytes=10**6, max_batch_size=1
    )
    request = Request(
        topic="requests",
        partition=0,
        offset=0,
        key=None,
        payload=payload,
        headers=[],
        content_type="application/json",
    )
    (answer,) = scorer.score([request])
    assert answer.status is Status.INVALID_PAYLOAD
    assert "the payload is not JSON: " in json.loads(answer.body)["detail"]


def test_what_else_it_raises_is_the_model_s(tmp_path: Path) -> None:
    good, bad = score(load(tmp_path), b"[1]", b'"text"')
    assert good[0] is Status.OK
    assert bad[0] is Status.MODEL_ERROR
    plugin = load(tmp_path, ORIGINAL.replace("application/json", "text/csv"))
    assert score(plugin, b"no JSON")[0][0] is Status.MODEL_ERROR
    raising = ORIGINAL.replace("json.dumps(", "int('x') or (")
    assert score(load(tmp_path, raising), b"[1]")[0][0] is Status.MODEL_ERROR


def test_it_may_refuse_a_payload_as_other_plugins_do(tmp_path: Path) -> None:
    raising = ORIGINAL.replace("json.dumps(", "_refuse(") + (
        "    def _refuse(number):\n"
        "        from stream_scorer.plugins import InvalidPayload\n"
        "        raise InvalidPayload('too many')\n"
    )
    status, _, body = score(load(tmp_path, raising), b"[1]")[0]
    assert status is Status.INVALID_PAYLOAD
    assert json.loads(body)["detail"] == "too many"


def test_parameters_of_the_type_are_left_out(tmp_path: Path) -> None:
    plugin = load(tmp_path, ORIGINAL.replace("application/json", "text/csv; header=present"))
    assert plugin.content_types == ("text/csv",)


def test_the_base_class_is_there_only_while_the_file_is_loaded(tmp_path: Path) -> None:
    load(tmp_path)
    assert not [name for name in sys.modules if name.startswith(PACKAGE)]
    refusal(tmp_path, f"import {PACKAGE}.plugin\n1 / 0\n")
    assert not [name for name in sys.modules if name.startswith(PACKAGE)]


def test_where_the_original_is_installed_its_own_base_class_is_taken(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text("class BasePlugin:\n    own = True\n")
    sys.path.insert(0, str(tmp_path))
    text = textwrap.dedent(ORIGINAL) + "assert BasePlugin.own\n"
    assert score(load(tmp_path, text), b"[1]")[0][2] == b"1"
    assert f"{PACKAGE}.plugin" in sys.modules


@pytest.mark.parametrize("name", ["load_model", "predict", "request_content_type"])
def test_a_missing_method_is_named_with_the_line_of_the_class(tmp_path: Path, name: str) -> None:
    told = refusal(tmp_path, ORIGINAL.replace(f"def {name}(", "def other("))
    assert told == f"plugin {tmp_path / 'plugin.py'}:5: class Plugin has no {name}"


@pytest.mark.parametrize("given", ["None", "'json'", "1"])
def test_a_content_type_that_is_none_is_told(tmp_path: Path, given: str) -> None:
    told = refusal(tmp_path, ORIGINAL.replace('"application/json"', given))
    assert told.endswith("plugin.py:5: request_content_type() gives no media type")


def test_an_error_while_it_is_made_is_told_with_its_line(tmp_path: Path) -> None:
    told = refusal(tmp_path, ORIGINAL.replace('return "application/json"', "return 1 / 0"))
    path = tmp_path / "plugin.py"
    assert told == f"plugin {path}: {path}:14: ZeroDivisionError: division by zero"
