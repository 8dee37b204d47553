"""Images made by ``stream-scorer build-image``: what is in them, and that they need no network.

The base is the worker's image of this checkout. Needs Docker and, for the packages, an index.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "sklearn_wine"
PAYLOAD = SAMPLE / "data" / "predict-wine-quality.json"
QUALITIES = [5.370157819225251, 5.535714285714286, 5.760869565217392]
CANARY = "canary-7f3a"
PREFIX = f"scorer-e2e-{uuid.uuid4().hex[:8]}"

# Of the original server's kind; what it reads text with, pandas 3 no longer has.
PLUGIN = """
from pathlib import Path

import iniconfig
import pandas
from mlflow_pluggable_scoring_server.plugin import BasePlugin

class Plugin(BasePlugin):
    def load_model(self, model_uri):
        import mlflow.sklearn
        return mlflow.sklearn.load_model(model_uri)
    def predict(self, model, data):
        wines = pandas.read_json(data.decode(), orient="split").drop(columns="quality")
        name = (Path(__file__).parent / "name.txt").read_text()
        return {name: model.predict(wines.to_numpy()).tolist(), "pandas": pandas.__version__}
    def request_content_type(self):
        return "application/json"
"""

BuildImage = Callable[..., "subprocess.CompletedProcess[str]"]


def docker(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run a docker command; return what it printed."""
    done = subprocess.run(
        ["docker", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"docker {arguments[0]}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return done.stdout


def run_image(image: str, *arguments: str) -> str:
    """Run an image as it is meant to be run, but with no network at all."""
    return docker(
        *("run", "--rm", "--init", "--network", "none", "--read-only", "--tmpfs", "/tmp"),  # noqa: S108
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"),
        *("--volume", f"{PAYLOAD}:/payload.json:ro", "--env", f"KAFKA_PASSWORD={CANARY}"),
        *(image, *arguments),
    )


@pytest.fixture(scope="module")
def base() -> Iterator[dict[str, str]]:
    """The worker's image with scikit-learn, and without any model library."""
    if shutil.which("docker") is None:
        pytest.skip("needs Docker")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a Docker daemon that answers")
    names = {extras: f"{PREFIX}-base:{extras or 'none'}" for extras in ("sklearn", "")}
    # What is built upon them has it too, and is found by it: also what got no name.
    label = f"scorer-e2e={PREFIX}"
    try:
        for extras, name in names.items():
            arguments = ("--target", "worker", "--build-arg", f"EXTRAS={extras}", "--tag", name)
            docker("build", "--label", label, *arguments, str(ROOT))
        yield names
    finally:
        # Of a failed build there is not all of it.
        subprocess.run(["docker", "rmi", *names.values()], capture_output=True, check=False)
        docker("image", "prune", "--force", "--filter", f"label={label}")


@pytest.fixture(scope="module")
def build_image(base: dict[str, str]) -> Iterator[BuildImage]:
    """Runs ``build-image`` for a tag of ours, which is removed at the end."""
    tags: list[str] = []

    def build(tag: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        tags.extend((tag, f"{tag}-unchecked"))
        return subprocess.run(
            [sys.executable, "-m", "stream_scorer", "build-image", "--tag", tag, *arguments],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("SCORER_")},
            capture_output=True,
            text=True,
            check=False,
        )

    yield build
    if tags:
        subprocess.run(["docker", "rmi", *tags], capture_output=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a conf with all that an image can hold, and a reference to a secret."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "plugin.py").write_text(PLUGIN)
    (folder / "name.txt").write_text("wines")
    shutil.copytree(SAMPLE / "model", folder / "model")
    # As of somebody who lets nobody else read.
    (folder / "model").chmod(0o700)
    (folder / "model" / "model.skops").chmod(0o600)
    (folder / "requirements.txt").write_text("iniconfig==2.0.0\n")
    conf = {
        "plugin": "plugin.py",
        "model_uri": "file:model",
        "packages": ["pandas<3", "requirements.txt"],
        "kafka": {"sasl.username": "me", "sasl.password": "${env:KAFKA_PASSWORD}"},
    }
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf))
    return folder


@pytest.fixture(scope="module")
def image(base: dict[str, str], build_image: BuildImage, project: Path) -> str:
    """The project's image."""
    tag = f"{PREFIX}-wine:1"
    done = build_image(
        *(tag, "--conf", str(project / "conf.yaml"), "--from", base["sklearn"]),
        *("--include", str(project / "name.txt")),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith(f"{tag}: file:model; version=")
    return tag


def test_it_scores_without_any_network(image: str) -> None:
    answered = json.loads(run_image(image, "check", "--no-timing", "/payload.json"))
    assert answered.pop("pandas").startswith("2.")
    assert answered == {"wines": QUALITIES}


def test_its_conf_refers_to_secrets_and_is_told_them_when_it_runs(image: str) -> None:
    shown = yaml.safe_load(run_image(image, "check", "--show-conf"))
    assert (shown["kafka"]["sasl.username"], shown["host"]) == ("me", "0.0.0.0")  # noqa: S104
    python = ("run", "--rm", "--network", "none", "--entrypoint", "cat", image, "/app/conf.yaml")
    assert yaml.safe_load(docker(*python))["kafka"]["sasl.password"] == "${env:KAFKA_PASSWORD}"


def test_it_starts_as_its_base_does(image: str, base: dict[str, str]) -> None:
    found, of_base = (
        json.loads(docker("image", "inspect", "--format", "{{json .Config}}", name))
        for name in (image, base["sklearn"])
    )
    for key in ("User", "Entrypoint", "Cmd", "Healthcheck", "WorkingDir"):
        assert found[key] == of_base[key]
    assert found["Labels"]["stream-scorer.model.uri"] == "file:model"


def test_another_model_installs_no_package_again(
    image: str, base: dict[str, str], build_image: BuildImage, project: Path
) -> None:
    (project / "model" / "other").write_text("2")
    done = build_image(
        *(f"{PREFIX}-wine:2", "--conf", str(project / "conf.yaml"), "--from", base["sklearn"]),
        *("--include", str(project / "name.txt")),
        *("--", "--quiet"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Installed again, its files would be younger.
    find = ("find", "/opt/environments", "-type", "f", "-printf", "%T+ %p\\n")
    environment, another = (
        docker("run", "--rm", "--network", "none", "--entrypoint", find[0], name, *find[1:])
        for name in (image, f"{PREFIX}-wine:2")
    )
    assert "iniconfig" in environment
    assert environment == another


@pytest.mark.parametrize("suffix", ["A", "@sha256:" + "0" * 64])
def test_what_is_no_name_is_told_before_anything_is_built(
    base: dict[str, str], build_image: BuildImage, suffix: str
) -> None:
    arguments = ("--conf", str(SAMPLE / "conf.yaml"), "--from", base["sklearn"])
    done = build_image(f"{PREFIX}{suffix}", *arguments)
    assert done.returncode == 1
    assert "invalid" in done.stderr
    assert "no image was built" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_an_image_that_lacks_a_library_does_not_get_the_name(
    base: dict[str, str], build_image: BuildImage, tmp_path: Path
) -> None:
    conf = {"plugin": str(SAMPLE / "plugin.py"), "model_uri": str(SAMPLE / "model")}
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(conf))
    tag = f"{PREFIX}-broken:1"
    done = build_image(tag, "--conf", str(tmp_path / "conf.yaml"), "--from", base[""])
    assert done.returncode == 2
    # From within the image, then from here.
    assert "model.skops is a skops file: No module named 'skops'" in done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"it stays {tag}-unchecked")
    names = docker("images", "--format", "{{.Tag}}", tag.partition(":")[0])
    assert names.split() == ["1-unchecked"]
