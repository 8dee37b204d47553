"""Beside ``mlflow models serve``: the same requests to both, the same bodies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from stream_scorer.plugins.pyfunc import Plugin
from stream_scorer.protocol import Status
from stream_scorer.scorer import Scorer
from tests.fakes import request
from tests.kafka_server import free_ports
from tests.mlflow_python import mlflow_python
from tests.summing_model import save_summing_model

START_TIMEOUT = 90.0
JSON = "application/json"
SPLIT = {"columns": ["a", "b"], "data": [[1, 2.5], [3.5, 4]]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    example = pd.DataFrame({"a": [1.5], "b": [2.5]})
    return save_summing_model(tmp_path_factory.mktemp("model"), example)


@pytest.fixture(scope="module")
def serve(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's own server for the model."""
    folder = tmp_path_factory.mktemp("serve")
    (port,) = free_ports(1)
    # The scripts of that environment name the folder that it was made in.
    uvicorn = folder / "bin" / "uvicorn"
    uvicorn.parent.mkdir()
    uvicorn.write_text(f'#!/bin/sh\nexec "{mlflow_python()}" -m uvicorn "$@"\n', encoding="utf-8")
    uvicorn.chmod(0o755)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *(str(mlflow_python()), "-m", "mlflow", "models", "serve", "-m", str(model)),
                *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)),
            ],
            cwd=folder,
            env=os.environ | {"PATH": f"{uvicorn.parent}:{os.environ['PATH']}"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not _answers(port):
                said = (folder / "log").read_text()
                assert server.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            if server.poll() is None:
                os.killpg(server.pid, 15)
            server.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def scorer(model: Path) -> Scorer:
    plugin = Plugin()
    loaded = plugin.load_model(str(model))
    return Scorer(plugin, loaded, payload_bytes=10**6, result_bytes=10**6, max_batch_size=512)


def ask(address: str, payload: bytes, content_type: str) -> tuple[int, bytes]:
    asked = urllib.request.Request(  # noqa: S310 - ours
        address, data=payload, headers={"Content-Type": content_type}
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310 - ours
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def params(**given: object) -> dict[str, object]:
    return {"dataframe_split": SPLIT, "params": given}


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        ({"dataframe_split": SPLIT}, JSON),
        ({"dataframe_split": {**SPLIT, "index": [3, 7]}}, JSON),
        ({"dataframe_split": {"columns": ["b", "a"], "data": [[1, 2]]}}, JSON),
        ({"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, "x"]]}}, JSON),
        ({"dataframe_split": {"columns": ["a", "b"], "data": []}}, JSON),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, None]]}}, JSON),
        ({"dataframe_records": [{"a": 1, "b": 2.5}, {"b": 4, "a": 3.5}]}, JSON),
        ({"inputs": {"a": [1, 3.5], "b": [2.5, 4]}}, JSON),
        ({"instances": [{"a": 1, "b": 2.5}, {"a": 3.5, "b": 4}]}, JSON),
        (params(factor=2.0), f"{JSON}; charset=utf-8"),
        (params(factor=3), JSON),
        (params(form="frame"), JSON),
        (params(form="series"), JSON),
        (params(form="dict"), JSON),
        (params(form="sum"), JSON),
        (b"b,a\n2.5,1\n4,3.5\n", "text/csv"),
    ],
    ids=str,
)
def test_the_same_request_has_the_same_body(
    serve: str, scorer: Scorer, payload: object, content_type: str
) -> None:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    theirs = ask(serve, body, content_type)
    asked = request(payload=body, content_type=content_type)
    alone, *_ = scorer.score([asked])
    assert (alone.status.http, alone.body) == theirs
    assert (alone.status, alone.content_type) == (Status.OK, JSON)


def test_parquet_has_the_same_body(serve: str, scorer: Scorer, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pd.DataFrame({"a": [1, 3.5], "b": [2.5, 4]}).to_parquet(tmp_path / "rows.parquet")
    body = (tmp_path / "rows.parquet").read_bytes()
    media_type = "application/vnd.apache.parquet"
    (ours,) = scorer.score([request(payload=body, content_type=media_type)])
    assert (ours.status.http, ours.body) == ask(serve, body, media_type)


@pytest.mark.parametrize(
    "payload",
    [
        {"dataframe_split": {"columns": ["a"], "data": [[1]]}},
        {"dataframe_split": {"columns": ["a", "b"], "data": [["x", 1]]}},
        {"dataframe_split": SPLIT, "instances": [1]},
        {},
        params(factor="x"),
    ],
    ids=str,
)
def test_what_mlflow_refuses_is_refused_with_its_reason(
    serve: str, scorer: Scorer, payload: object
) -> None:
    body = json.dumps(payload).encode()
    status, theirs = ask(serve, body, JSON)
    assert status == 400
    (ours,) = scorer.score([request(payload=body)])
    assert ours.status is Status.INVALID_PAYLOAD
    # MLflow's server puts a line before it, and names what it takes in any order.
    said, message = (
        re.sub(r"\{'.*?'\}", "{…}", text)
        for text in (json.loads(ours.body)["detail"], json.loads(theirs)["message"])
    )
    assert said.splitlines()[-1] in message
