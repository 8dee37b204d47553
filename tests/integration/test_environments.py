"""Environments for packages that the server lacks: real pip, wheels made here, no network."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_scorer.errors import SetupError
from stream_scorer.plugins import environments
from stream_scorer.plugins.environments import InstallFailed
from stream_scorer.plugins.packages import read_packages
from tests.engine import ROOT, environment_for, worker_process
from tests.kafka_server import MakeTopics
from tests.wheels import make_wheel
from tests.wire import RecordReader, RequestProducer, Send

KINDS = ("requests", "results", "replies", "dead_letters")
CANARY = "canary-7f3a"

PLUGIN = """
import os
import sys

import rule
from stream_scorer import plugins

class Plugin(plugins.Plugin):
    content_types = ("text/plain",)
    def load_model(self, model_uri):
        return rule.VERSION
    def decode(self, payload, content_type):
        return payload.decode()
    def predict(self, model, instances):
        return [[model, sys.prefix, os.getpid()] for _ in instances]
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0"):
        make_wheel(folder, "rule", version)
    make_wheel(folder, "clashing", "1.0", "numpy<2")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the module: what one test made is kept for the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def variables(wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a machine without network is set to, here and for the processes of a test."""
    found = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "XDG_CACHE_HOME": str(cache),
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def write_conf(folder: Path, *packages: str, **more: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").write_text("model_uuid: m\nflavors: {none: {}}\n")
    (folder / "payload.txt").write_text("x")
    conf = {"plugin": "plugin.py", "model_uri": "model", "packages": [*packages], **more}
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf), encoding="utf-8")
    return str(folder / "conf.yaml")


def check(conf: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``check`` of a conf, from its folder."""
    return subprocess.run(
        [sys.executable, "-m", "stream_scorer", "check", "--conf", conf, *arguments],
        cwd=Path(conf).parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def answer(conf: str) -> list[Any]:
    done = check(conf, str(Path(conf).parent / "payload.txt"))
    assert done.returncode == 0, done.stderr
    answered: list[Any] = yaml.safe_load(done.stdout)
    return answered


def refusal(conf: str) -> str:
    done = check(conf)
    assert done.returncode == 2, done.stderr
    told = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    return told.removeprefix("stream-scorer: ")


def made(*packages: str) -> Path:
    return environments.make(read_packages(packages))


def failure(*packages: str) -> str:
    with pytest.raises(InstallFailed) as caught:
        made(*packages)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def version_in(python: Path, module: str = "rule") -> str:
    """A module's version as an environment has it, away from the checkout."""
    done = subprocess.run(
        [python, "-P", "-c", f"import stream_scorer, numpy, {module}; print({module}.VERSION)"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_workers_with_conflicting_packages_run_side_by_side(
    kafka: str,
    topics: MakeTopics,
    unique_group: str,
    tmp_path: Path,
    cache: Path,
    variables: Mapping[str, str],
) -> None:
    workers = {"1.0": 1, "2.0": 2}  # processes: the second has a supervisor
    names = {version: topics(4, *KINDS) for version in workers}
    confs = {v: write_conf(tmp_path / v, f"rule=={v}", "pandas") for v in workers}

    def environment(version: str) -> dict[str, str]:
        kinds = dict(zip(KINDS, names[version], strict=True))
        section = {"group": f"{unique_group}-{version}", "processes": workers[version]}
        return {**variables, **environment_for(kafka, kinds, worker=section)}

    with (
        RecordReader(kafka, *(names[version][1] for version in workers)) as reader,
        worker_process(tmp_path, "1.0", environment("1.0"), confs["1.0"]) as first,
        worker_process(tmp_path, "2.0", environment("2.0"), confs["2.0"]) as second,
    ):
        sent = {
            version: RequestProducer(kafka, names[version][0]).send(
                *(Send(b"x", partition=n % 4) for n in range(20))
            )
            for version in workers
        }
        answers = reader.answers([each for ids in sent.values() for each in ids])
        logs = first.text, second.text
        assert (first.stop(), second.stop()) == (0, 0)
    of = {record.correlation_id: yaml.safe_load(record.value or b"") for record in answers}
    for version, count in workers.items():
        scored = [of[each] for each in sent[version]]
        assert {used for used, _, _ in scored} == {version}
        (prefix,) = {prefix for _, prefix, _ in scored}
        assert Path(prefix).is_relative_to(cache)
        assert len({pid for _, _, pid in scored}) == count
    # A supervisor's processes find theirs made.
    assert [log.count("installing rule") for log in logs] == [1, 1]


def test_a_kept_environment_needs_no_network(
    tmp_path: Path, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    python = made("rule==1.0", "pandas")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    conf = write_conf(tmp_path / "conf", "pandas", "rule==1.0")
    assert answer(conf)[:2] == ["1.0", str(python.parents[1])]
    assert version_in(python) == "1.0"


def test_what_the_server_has_needs_no_environment(
    tmp_path: Path, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    conf = write_conf(tmp_path / "conf", "numpy>=2", "scikit-learn")
    (tmp_path / "conf" / "rule.py").write_text("VERSION = 0")
    assert answer(conf)[:2] == [0, sys.prefix]
    assert not (tmp_path / "cache").exists()


def test_what_was_installed_before_is_found_where_nothing_can_be_written(
    tmp_path: Path, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORER_ENVIRONMENTS", str(tmp_path / "environments"))
    conf = write_conf(tmp_path / "conf", "pandas", "rule==2.0", host="${env:NOT_SET}")
    done = subprocess.run(
        [sys.executable, "-m", "stream_scorer", "install", "--conf", conf],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (path for path in (tmp_path / "environments").iterdir() if path.is_dir())
    assert done.stdout == f"{folder}\n"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "conf" / "payload.txt"))
    monkeypatch.setenv("NOT_SET", "localhost")
    assert answer(conf)[:2] == ["2.0", str(folder)]


def test_a_package_that_hides_the_environment_s_own_is_told(
    tmp_path: Path, variables: Mapping[str, str]
) -> None:
    """``PYTHONPATH`` comes first in every environment."""
    made("rule==1.0", "pandas")
    with zipfile.ZipFile(Path(variables["PIP_FIND_LINKS"]) / "rule-2.0-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "hiding")
    conf = write_conf(tmp_path / "conf", "pandas", "rule==1.0")
    done = check(conf, PYTHONPATH=f"{tmp_path / 'hiding'}:{ROOT}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "stream-scorer: packages are hidden by others that come before their environment: "
        "rule==1.0; is PYTHONPATH set?"
    )


def test_showing_a_conf_installs_nothing_and_masks_credentials(
    tmp_path: Path, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    conf = write_conf(tmp_path / "conf", f"rule @ https://me:{CANARY}@example.org/rule.whl")
    done = check(conf, "--show-conf")
    assert done.returncode == 0
    assert CANARY not in done.stdout + done.stderr
    assert "rule @ https://********@example.org/rule.whl" in done.stdout
    assert not (tmp_path / "cache").exists()


def test_a_half_made_environment_is_made_anew_and_once(
    variables: Mapping[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    packages = ["rule==2.0"]
    folder = made(*packages).parents[1]
    shutil.rmtree(folder)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    caplog.clear()
    with caplog.at_level("INFO"), ThreadPoolExecutor() as threads:
        first, second = threads.map(lambda _: made(*packages), range(2))
    assert first == second == folder / "bin" / "python"
    assert version_in(first) == "2.0"
    assert len([each for each in caplog.messages if each.startswith("installing rule")]) == 1


def test_what_the_worker_itself_needs_is_kept_to(variables: Mapping[str, str]) -> None:
    told = failure("clashing")
    assert told.startswith("packages cannot be installed: clashing; pip: ")
    assert "numpy<2" in told
    assert "The user requested (constraint) numpy<3,>=2" in told


def test_a_failed_install_is_one_line_without_credentials(
    tmp_path: Path, cache: Path, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    environments_folder = cache / "stream-scorer" / "environments"
    before = {path for path in environments_folder.glob("*") if path.is_dir()}
    conf = write_conf(
        tmp_path, "rule==3.0", f"x @ http://me:{CANARY}@127.0.0.1:1/x-1.tar.gz?a={CANARY}"
    )
    done = check(conf)
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith(
        "stream-scorer: packages cannot be installed: rule==3.0, "
        "x @ http://********@127.0.0.1:1/x-1.tar.gz?********; pip: "
    )
    assert {path for path in environments_folder.glob("*") if path.is_dir()} == before


def test_hashes_are_kept_to(tmp_path: Path, variables: Mapping[str, str], wheels: Path) -> None:
    right = hashlib.sha256((wheels / "rule-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    file = tmp_path / "requirements.txt"
    file.write_text(f"rule==1.0 \\\n    --hash=sha256:{right}\n")
    assert version_in(made(str(file))) == "1.0"
    file.write_text(f"rule==1.0 --hash=sha256:{right[::-1]}\n")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in failure(str(file))


def test_a_model_s_own_requirements_join_the_list(
    tmp_path: Path, variables: Mapping[str, str]
) -> None:
    conf = write_conf(tmp_path, "pandas", model={"install_requirements": True})
    done = check(conf)
    assert done.returncode == 2
    assert done.stderr.endswith("requirements.txt of model_uri model: No such file or directory\n")
    (tmp_path / "model" / "requirements.txt").write_text(
        "MLflow==1.0\nmlflow_skinny==1.0\nrule==1.0\n"
    )
    assert answer(conf)[0] == "1.0"


def test_a_cache_that_cannot_be_written_to_is_told(
    tmp_path: Path, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SetupError, match=r"no environment can be made .*cache"):
        made("rule")
