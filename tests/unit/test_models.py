from __future__ import annotations

import http.server
import json
import os
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from stream_scorer.plugins.models import (
    REGISTRY_RETRIES,
    ModelFolder,
    fetch_model,
    load_model,
)
from tests.fakes import EchoPlugin
from tests.model_folders import make_model, refusal

CANARY = "canary-7f3a"
_MLFLOW = ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", *REGISTRY_RETRIES]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MLflow's variables unset now and again afterwards, and a current folder without models."""
    for name in [*_MLFLOW, "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


# Where a model is.


@pytest.mark.parametrize(
    "form",
    [
        *("{path}", "file:{path}", "file://{path}", "file://localhost{path}"),
        *("{relative}", "file:{relative}", "./{relative}", "{path}/"),
    ],
)
def test_a_folder_is_found_by_path_or_file_uri(tmp_path: Path, form: str) -> None:
    path = make_model(tmp_path / "cwd" / "a model", model_id="m-1")
    uri = form.format(path=path, relative="a model")
    found = fetch_model(uri)
    assert found.path.samefile(path)
    assert found.uri == uri
    assert found.header == f"{uri}; version=m-1"


def test_a_file_uri_may_be_percent_encoded(tmp_path: Path) -> None:
    path = make_model(tmp_path / "a model")
    assert fetch_model(path.as_uri()).path == path
    assert "%20" in path.as_uri()


def test_a_relative_path_is_looked_for_as_the_conf_says(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    assert fetch_model("file:model", lambda path: tmp_path / path).path == tmp_path / "model"


@pytest.mark.parametrize("uri", ["nowhere", "file:nowhere", "file:///no/where", "cwd/../nowhere"])
def test_a_folder_that_is_not_there_is_named(uri: str) -> None:
    assert refusal(fetch_model, uri) == f"model_uri {uri}: no such folder"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    assert refusal(fetch_model, str(path)).endswith(": no such folder")


@pytest.mark.parametrize(
    "uri", ["s3://bucket/model", "https://example.org/model", "dbfs:/model", "my:model", "model:/a"]
)
def test_another_scheme_is_told_what_there_is(uri: str) -> None:
    told = refusal(fetch_model, uri)
    assert told.startswith(f"model_uri {uri}: must be a path, file:, models:/name/version")
    assert "models:/name@alias" in told
    assert "runs:/" in told


@pytest.mark.parametrize("uri", ["file://[oops", "//[oops", "file:a\0b"])
def test_what_is_no_uri_at_all_is_one_line_too(uri: str) -> None:
    assert refusal(fetch_model, uri).startswith("model_uri ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not an MLflow model: it has no MLmodel file"),
        (b"a: [", "its MLmodel file cannot be read"),
        (b"\xff\xfe", "its MLmodel file cannot be read"),
        (b"- a", "its MLmodel file is not a map"),
        (b"", "its MLmodel file is not a map"),
        (b"a: 1", "its MLmodel file names no flavors"),
        (b"flavors: [sklearn]", "its MLmodel file names no flavors"),
        (b"flavors: !!python/object/apply:os.getcwd []", "its MLmodel file cannot be read"),
    ],
)
def test_a_folder_that_is_no_model_is_told_why(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "MLmodel").write_bytes(content)
    assert refusal(fetch_model, str(folder)) == f"model_uri {folder}: {message}"


# Which model it is.


@pytest.mark.parametrize(
    ("description", "version"),
    [
        ({"model_id": "m-1", "model_uuid": "u-1"}, "m-1"),
        ({"model_id": None, "model_uuid": "u-1"}, "u-1"),
        ({"model_uuid": 17}, "17"),
    ],
)
def test_the_version_is_mlflows_id_of_the_model(
    tmp_path: Path, description: dict[str, Any], version: str
) -> None:
    assert fetch_model(str(make_model(tmp_path / "m", **description))).version == version


def test_the_version_of_a_registered_model_is_the_registrys(tmp_path: Path) -> None:
    meta = {"registered_model_meta": b"model_name: wine\nmodel_version: 7\n"}
    folder = make_model(tmp_path / "m", files=meta, model_id="m-1")
    assert fetch_model(str(folder)).version == "7"


@pytest.mark.parametrize("meta", [b"", b"- a", b"model_name: wine", b"a: [", b"\xff"])
def test_what_the_registry_left_may_say_nothing(tmp_path: Path, meta: bytes) -> None:
    folder = make_model(tmp_path / "m", files={"registered_model_meta": meta}, model_id="m-1")
    assert fetch_model(str(folder)).version == "m-1"


def test_models_without_an_id_are_told_apart_by_their_files(tmp_path: Path) -> None:
    versions = {
        fetch_model(str(make_model(tmp_path / name, files=files))).version
        for name, files in {
            "a": {"weights": b"1"},
            "b": {"weights": b"2"},
            "c": {"weights2": b"1"},
            "d": {"data/weights": b"1"},
        }.items()
    }
    assert len(versions) == 4
    again = fetch_model(str(make_model(tmp_path / "elsewhere", files={"weights": b"1"}))).version
    assert again in versions


# A registry, which may not answer.


class Registry(socketserver.ThreadingTCPServer):
    """Counts who comes; answers nobody unless a subclass does."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.visits: list[str] = []
        self.release = threading.Event()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Hangs(socketserver.BaseRequestHandler):
    """Takes the connection and says nothing."""

    server: Registry

    def handle(self) -> None:
        self.server.visits.append("")
        self.server.release.wait(60)


class HangsUp(socketserver.BaseRequestHandler):
    """Takes the connection and closes it."""

    server: Registry

    def handle(self) -> None:
        self.server.visits.append("")


class Answers(http.server.BaseHTTPRequestHandler):
    """MLflow's REST interface, as far as finding a model goes; ``answers`` by the call's name."""

    server: Registry
    answers: ClassVar[dict[str, dict[str, Any]]] = {}

    def do_GET(self) -> None:
        call = urlsplit(self.path).path.partition("/mlflow/")[2]
        self.server.visits.append(f"{call} {sorted(parse_qs(urlsplit(self.path).query).items())}")
        found = self.answers.get(call)
        missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"no {call}\nreally"}
        body = json.dumps(missing if found is None else found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Standard error is not the place."""


@contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[Registry]:
    with Registry(handler) as registry:
        thread = threading.Thread(target=registry.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield registry
        finally:
            registry.release.set()
            registry.shutdown()
            thread.join()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow tries as often as ever, without waiting between."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


URIS = ["models:/wine/1", "models:/wine@champion", "runs:/0123456789abcdef0123456789abcdef/model"]


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("uri", URIS)
def test_a_registry_that_hangs_up_is_tried_three_times(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(HangsUp) as registry:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
        told = refusal(fetch_model, uri)
    assert told.startswith(f"model_uri {uri}: ")
    assert registry.uri.removeprefix("http://").partition(":")[0] in told
    assert len(registry.visits) == 3


def test_a_registry_that_hangs_is_left_after_the_users_own_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serving(Hangs) as registry:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
        told = refusal(fetch_model, "models:/wine/1")
    assert told.startswith("model_uri models:/wine/1: ")
    assert len(registry.visits) == 1
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_retries_are_bounded_to_about_fifteen_seconds() -> None:
    """Each try takes its timeout; before the n-th MLflow waits ``factor * 2 ** (n - 1)``."""
    timeout, retries, factor = (int(value) for value in REGISTRY_RETRIES.values())
    waits = sum(factor * 2 ** (n - 1) for n in range(2, retries + 1))
    assert 10 <= (1 + retries) * timeout + waits <= 20


@pytest.mark.usefixtures("no_waiting")
def test_a_port_that_nobody_listens_on_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(HangsUp) as registry:
        uri = registry.uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert refusal(fetch_model, "models:/wine/1").startswith("model_uri models:/wine/1: ")


@pytest.mark.usefixtures("no_waiting")
def test_a_registrys_password_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(HangsUp) as registry:
        address = registry.uri.replace("http://", f"http://me:p@{CANARY}@")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert CANARY not in refusal(fetch_model, "models:/wine/1")


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("uri", URIS)
def test_a_model_that_the_registry_does_not_know_is_one_line(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Answers) as registry:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
        told = refusal(fetch_model, uri)
    assert told.startswith(f"model_uri {uri}: RESOURCE_DOES_NOT_EXIST: no ")


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("uri", URIS)
def test_a_model_is_fetched_from_its_registry(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_model(tmp_path / "store" / "model", files={"weights": b"1"}, model_id="m-1")
    version = {"name": "wine", "version": "4", "source": source.as_uri(), "status": "READY"}
    run = {"run_id": "0" * 32, "artifact_uri": source.parent.as_uri(), "status": "FINISHED"}

    class Wine(Answers):
        answers: ClassVar[dict[str, dict[str, Any]]] = {
            "registered-models/get": {"registered_model": {"name": "wine"}},
            "model-versions/get-download-uri": {"artifact_uri": source.as_uri()},
            "model-versions/get": {"model_version": version},
            "registered-models/alias": {"model_version": version},
            "runs/get": {"run": {"info": run, "data": {}}},
        }

    with serving(Wine) as registry:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
        found = fetch_model(uri)
        copied = fetch_model(uri, into=tmp_path / "into")
    assert (found.path / "weights").read_bytes() == b"1"
    assert (copied.path / "weights").read_bytes() == b"1"
    assert copied.path.is_relative_to(tmp_path / "into")
    assert copied.version == found.version
    expected = {URIS[0]: "1", URIS[1]: "4", URIS[2]: "m-1"}[uri]
    assert found.header == f"{uri}; version={expected}"


def test_the_plugin_gets_the_models_folder(tmp_path: Path) -> None:
    class Noting(EchoPlugin):
        def load_model(self, model_uri: str) -> Any:
            return ["loaded", model_uri]

    folder = fetch_model(str(make_model(tmp_path / "m")))
    assert load_model(Noting(), folder) == ["loaded", str(tmp_path / "m")]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError(), "ValueError"),
        (ModuleNotFoundError("No module named 'sklearn'"), "ModuleNotFoundError: No module"),
        (MemoryError(), "MemoryError"),
        (SystemExit(0), "SystemExit: 0"),
        (Unprintable(), "Unprintable: "),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, error: BaseException, told: str
) -> None:
    class Failing(EchoPlugin):
        def load_model(self, model_uri: str) -> Any:
            raise error

    folder = ModelFolder(tmp_path, "models:/wine/1", "1", {})
    found = refusal(load_model, Failing(), folder)
    assert found.startswith("model_uri models:/wine/1: cannot be loaded: ")
    assert told in found
