"""Models from a real registry: ``mlflow server`` with a database and a folder of artifacts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from stream_scorer.plugins.models import fetch_requirements
from tests.engine import ROOT
from tests.kafka_server import free_ports
from tests.mlflow_python import mlflow_python

START_TIMEOUT = 90.0
SAMPLE = ROOT / "samples" / "sklearn_wine"
QUALITIES = [5.370157819225251, 5.535714285714286, 5.760869565217392]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry."""
    folder = tmp_path_factory.mktemp("registry")
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *(str(mlflow_python()), "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not _answers(address):
                said = (folder / "log").read_text()
                assert server.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.2)
            yield address
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2):  # noqa: S310 - ours
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def run_id(registry: str) -> str:
    """The run that the model ``wine`` was registered from, as version 1, alias ``champion``."""
    script = (
        "import sys, mlflow\n"
        "client = mlflow.MlflowClient()\n"
        "run = client.create_run('0')\n"
        "client.log_artifacts(run.info.run_id, sys.argv[1], 'model')\n"
        "client.create_registered_model('wine')\n"
        "source = f'{run.info.artifact_uri}/model'\n"
        "client.create_model_version('wine', source, run.info.run_id)\n"
        "client.set_registered_model_alias('wine', 'champion', '1')\n"
        "print(run.info.run_id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(SAMPLE / "model")],
        env={**os.environ, "MLFLOW_TRACKING_URI": registry},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def check(registry: str, uri: str) -> subprocess.CompletedProcess[str]:
    sample = SAMPLE / "data" / "predict-wine-quality.json"
    return subprocess.run(
        [
            *(sys.executable, "-m", "stream_scorer", "check", "--no-timing"),
            *("--conf", str(SAMPLE / "conf.yaml"), str(sample)),
        ],
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": registry, "SCORER_MODEL_URI": uri},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.timeout(700)  # the first time the server is installed
@pytest.mark.parametrize("uri", ["models:/wine/1", "models:/wine@champion", "runs:/{run}/model"])
def test_a_registered_model_scores(uri: str, registry: str, run_id: str) -> None:
    uri = uri.format(run=run_id)
    done = check(registry, uri)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == QUALITIES
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("model ")]
    assert told.startswith(f"model {uri}; version=")
    if uri.startswith("models:"):
        assert told.endswith("; version=1")


@pytest.mark.parametrize("uri", ["models:/wine/1", "models:/wine@champion", "runs:/{run}/model"])
def test_a_registered_model_s_requirements_are_fetched_alone(
    uri: str, registry: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    path = fetch_requirements(uri.format(run=run_id))
    assert path.read_text() == (SAMPLE / "model" / "requirements.txt").read_text()
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("uri", ["models:/wine/7", "models:/wine@nobody", "models:/beer/1"])
def test_a_model_that_is_not_registered_is_one_line(uri: str, registry: str, run_id: str) -> None:
    done = check(registry, uri)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("stream-scorer: ")]
    assert len(lines) == 1, done.stderr
    assert uri in lines[0]
    assert "Traceback" not in done.stderr
