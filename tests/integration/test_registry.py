"""Models from a real registry: ``mlflow server`` with a database and a folder of artifacts."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from stream_scorer.config import load_settings
from stream_scorer.plugins.models import fetch_model, fetch_requirements
from tests.engine import ROOT, environment_for, process
from tests.kafka_server import MakeTopics, free_ports
from tests.mlflow_python import mlflow_python
from tests.wire import RecordReader, RequestProducer, Send

START_TIMEOUT = 90.0
SAMPLE = ROOT / "samples" / "sklearn_wine"
QUALITIES = [5.370157819225251, 5.535714285714286, 5.760869565217392]
USER, PASSWORD = "scorer", "open sésame: 42"


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
    """The run that the model ``wine`` was registered from, twice.

    Version 1 has the alias ``champion``, version 2 ``challenger``.
    """
    script = (
        "import sys, mlflow\n"
        "client = mlflow.MlflowClient()\n"
        "run = client.create_run('0')\n"
        "client.log_artifacts(run.info.run_id, sys.argv[1], 'model')\n"
        "client.create_registered_model('wine')\n"
        "source = f'{run.info.artifact_uri}/model'\n"
        "for alias in ('champion', 'challenger'):\n"
        "    made = client.create_model_version('wine', source, run.info.run_id)\n"
        "    client.set_registered_model_alias('wine', alias, made.version)\n"
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


def check(registry: str, uri: str, **environment: str) -> subprocess.CompletedProcess[str]:
    sample = SAMPLE / "data" / "predict-wine-quality.json"
    return subprocess.run(
        [
            *(sys.executable, "-m", "stream_scorer", "check", "--no-timing"),
            *("--conf", str(SAMPLE / "conf.yaml"), str(sample)),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            **environment,
            "MLFLOW_TRACKING_URI": registry,
            "SCORER_MODEL_URI": uri,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.timeout(700)  # the first time the server is installed
def test_a_registered_model_scores(registry: str, run_id: str) -> None:
    done = check(registry, "models:/wine@champion")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == QUALITIES
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("model ")]
    assert told == "model models:/wine@champion; version=1"


@pytest.fixture(scope="module")
def guarded(registry: str) -> Iterator[str]:
    """The address of the registry behind a password."""
    token = b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Basic {token}":
                self.send_error(401)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            inner = http.client.HTTPConnection(urlsplit(registry).netloc, timeout=30)
            inner.request(self.command, self.path, body, dict(self.headers))
            answer = inner.getresponse()
            content = answer.read()
            inner.close()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - named by its base class

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Guard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def credentials(password: str = PASSWORD) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": password}


def secrets() -> list[str]:
    """The password as it is, and as the header has it."""
    return [PASSWORD, b64encode(f"{USER}:{PASSWORD}".encode()).decode()]


@pytest.mark.timeout(700)
def test_workers_tell_the_version_that_answered_and_keep_the_password(
    guarded: str, run_id: str, kafka: str, topics: MakeTopics, unique_group: str, tmp_path: Path
) -> None:
    digest = fetch_model(str(SAMPLE / "model")).version
    versions = {
        "models:/wine/1": "1",
        "models:/wine@challenger": "2",
        f"runs:/{run_id}/model": digest,
    }
    kinds = ("results", "replies", "dead_letters")
    made = topics(4, *kinds, *(f"requests-{n}" for n in range(len(versions))))
    names = dict(zip(kinds, made[:3], strict=True))
    wines = json.loads((SAMPLE / "data" / "predict-wine-quality.json").read_text())
    payload = json.dumps(
        {"columns": wines["columns"][:11], "data": [row[:11] for row in wines["data"]]}
    ).encode()
    with RecordReader(kafka, names["results"]) as reader, ExitStack() as workers:
        started, told = {}, {}
        # All at once: what takes its time is their imports.
        for number, (uri, requests) in enumerate(zip(versions, made[3:], strict=True)):
            environment = environment_for(
                kafka,
                {**names, "requests": requests},
                worker={"group": f"{unique_group}-{number}"},
                logging={"level": "DEBUG"},
            )
            environment |= {"SCORER_MODEL_URI": uri, "MLFLOW_TRACKING_URI": guarded}
            environment["SCORER_WORKER_READY_FILE"] = str(tmp_path / f"ready-{number}")
            log = tmp_path / f"worker-{number}.log"
            started[uri] = workers.enter_context(
                process(log, "worker", environment=environment | credentials())
            )
            send = Send(payload, "application/json")
            RequestProducer(kafka, requests).send(send)
            told[send.correlation_id] = uri
        for number, worker in enumerate(started.values()):
            worker.wait_for("assignment", (tmp_path / f"ready-{number}").exists)
        for answer in reader.answers(told):
            uri = told[answer.correlation_id]
            assert answer.header("model") == f"{uri}; version={versions[uri]}"
            assert answer.status == "ok", answer.value
            assert json.loads(answer.value or b"") == {"predictions": QUALITIES}
        for worker in started.values():
            assert "DEBUG" in worker.text
            assert not [secret for secret in secrets() if secret in worker.text]


def test_a_password_that_the_registry_refuses_is_told_and_not_shown(
    guarded: str, run_id: str
) -> None:
    wrong = "not the one"
    done = check(guarded, "models:/wine/1", **credentials(wrong))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("stream-scorer: ")]
    assert "models:/wine/1" in line
    assert "401" in line
    assert wrong not in done.stderr


@pytest.mark.timeout(700)
def test_an_image_gets_a_registered_model_and_no_password(
    guarded: str, run_id: str, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "stream_scorer", "build-image", "--context", str(context)),
            *("--conf", str(SAMPLE / "conf.yaml")),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            **credentials(),
            "MLFLOW_TRACKING_URI": guarded,
            "SCORER_MODEL_URI": "models:/wine@challenger",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    baked = load_settings(context / "conf.yaml", {})
    assert baked.model_uri == "models/wine@challenger"
    model = fetch_model(baked.model_uri, baked.locate)
    assert model.header == "models/wine@challenger; version=2"
    copied = (model.path / "model.skops").read_bytes()
    assert copied == (SAMPLE / "model" / "model.skops").read_bytes()
    assert {path.name for path in context.iterdir()} == {
        *("Dockerfile", "conf.yaml", "packages.txt"),
        *("models", "plugin", "examples"),
    }
    for path in context.rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            assert not [secret for secret in secrets() if secret.encode() in text], path


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
