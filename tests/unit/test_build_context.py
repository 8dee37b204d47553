"""The files that an image is built of, and the commands that build, check and name it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_scorer.build_context import write_context
from stream_scorer.cli.environment import packages_of
from stream_scorer.config import load_settings, read_conf
from stream_scorer.errors import SetupError
from stream_scorer.plugins.models import ModelFolder
from tests.model_folders import make_model

ROOT = Path(__file__).parents[2]
CANARY = "canary-7f3a"


class Project:
    """A folder with a conf, a plugin and a model, and the context that is made of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.context = folder / "context"
        self.context.mkdir()
        make_model(self.folder / "model", files={"data/weights": b"1"}, model_id="m-1")
        (self.folder / "code").mkdir()
        (self.folder / "code" / "wine.py").write_text("the plugin")
        (self.folder / ".env").write_text(CANARY)
        self.conf: dict[str, Any] = {"plugin": "code/wine.py:Wine", "model_uri": "file:model"}

    def write(
        self, *include: str, environ: Mapping[str, str] | None = None, base: str = "base:1"
    ) -> ModelFolder:
        path = self.folder / "conf.yaml"
        path.write_text(yaml.safe_dump(self.conf), encoding="utf-8")
        settings = load_settings(path, environ or {}, secrets=False)
        included = [self.folder / each for each in include]
        packages = packages_of(settings)
        return write_context(self.context, base, read_conf(path), settings, packages, included)

    def refusal(self, *include: str, environ: Mapping[str, str] | None = None) -> str:
        with pytest.raises(SetupError) as caught:
            self.write(*include, environ=environ)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @property
    def baked(self) -> Any:
        return yaml.safe_load((self.context / "conf.yaml").read_text("utf-8"))

    @property
    def files(self) -> set[str]:
        found = (path for path in self.context.rglob("*") if path.is_file())
        return {str(path.relative_to(self.context)) for path in found}

    @property
    def dockerfile(self) -> list[str]:
        return (self.context / "Dockerfile").read_text("utf-8").splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_plugin_and_the_model_come_along_and_nothing_else(project: Project) -> None:
    model = project.write()
    assert project.files == {
        *("Dockerfile", "conf.yaml", "plugin/wine.py"),
        *("model/MLmodel", "model/data/weights"),
    }
    assert project.baked == {"plugin": "plugin/wine.py:Wine", "model_uri": "model"}
    assert model.header == "file:model; version=m-1"
    assert project.dockerfile[0] == "FROM base:1"
    assert not any(line.startswith(("RUN", "USER", "ENTRYPOINT")) for line in project.dockerfile)


def test_what_is_written_is_what_the_image_reads(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.conf |= {"packages": ["numpy", "extra.txt"], "worker": {"max_turn": 7}}
    project.conf["facade"] = {"examples": {"text/csv": "rows.csv"}, "max_pending": 3}
    (project.folder / "extra.txt").write_text("pandas\nnumpy\nrule==1.0 --hash=sha256:ab12\n")
    (project.folder / "rows.csv").write_text("a,b")
    project.write()
    monkeypatch.chdir(project.context)
    settings = load_settings(Path("conf.yaml"), {})
    assert (settings.worker.max_turn, settings.facade.max_pending) == (7, 3)
    assert settings.locate(settings.facade.examples["text/csv"]).read_text() == "a,b"
    assert [package.line for package in packages_of(settings)] == [
        *("numpy", "pandas", "rule==1.0 --hash=sha256:ab12"),
    ]


def test_references_stay_and_their_values_stay_here(project: Project) -> None:
    (project.folder / "secret").write_text(CANARY)
    project.conf |= {
        "kafka": {"sasl.password": "${env:PASSWORD}", "ssl.key.pem": "${file:secret}"},
        "facade": {"api_keys": ["${env:KEY}"]},
        "model_uri": "${env:MODEL}",
    }
    environ = {"PASSWORD": CANARY, "KEY": CANARY, "MODEL": "model", "OTHER": CANARY}
    project.write(environ=environ | {"SCORER_KAFKA_SSL_KEY_PASSWORD": CANARY})
    assert project.baked["kafka"] == project.conf["kafka"]
    assert project.baked["facade"] == project.conf["facade"]
    assert project.baked["model_uri"] == "model"
    for path in project.files:
        assert CANARY not in (project.context / path).read_text(), path


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"kafka": {"sasl.password": CANARY}}, "in its place @ kafka.sasl.password"),
        ({"facade": {"api_keys": [CANARY * 2]}}, "in its place @ facade.api_keys.0"),
        ({"packages": [f"a @ https://me:{CANARY}@host/a.whl"]}, "credentials would be in the im"),
        (
            {"packages": ["a @ https://me:${env:TOKEN}@host/a.whl"]},
            "credentials would be in the im",
        ),
    ],
)
def test_a_secret_is_refused_and_not_told(
    project: Project, more: dict[str, Any], told: str
) -> None:
    project.conf |= more
    refused = project.refusal(environ={"TOKEN": CANARY})
    assert told in refused
    assert CANARY not in refused
    assert "conf.yaml" not in project.files


def test_packages_are_installed_below_the_model(project: Project) -> None:
    project.conf["packages"] = ["rule==1.0"]
    project.write()
    lines = project.dockerfile
    assert lines[0] == "FROM base:1 AS packages"
    assert "    && stream-scorer install --conf conf.yaml" in lines
    # What follows the second FROM is the image: nothing is run there, nor as root.
    image = lines[lines.index("FROM base:1") :]
    assert image.index("COPY --from=packages /opt/environments /opt/environments") < image.index(
        "COPY model model/"
    )
    assert not any(line.startswith(("RUN", "USER")) for line in image)
    assert project.baked["packages"] == ["packages.txt"]


def test_a_model_s_own_requirements_are_among_them(project: Project) -> None:
    project.conf |= {"packages": ["rule"], "model": {"install_requirements": True}}
    (project.folder / "model" / "requirements.txt").write_text("mlflow==1\nrule\nother\n")
    project.write()
    assert (project.context / "packages.txt").read_text() == "rule\nother\n"
    assert project.baked["model"] == {"install_requirements": True}


def test_files_that_the_plugin_reads_come_along_when_named(project: Project) -> None:
    code = project.folder / "code"
    (code / "tables" / "__pycache__").mkdir(parents=True)
    (code / "tables" / "__pycache__" / "a.pyc").write_text("")
    (code / "tables" / "a.csv").write_text("1")
    (code / "labels.txt").write_text("a")
    project.write("code/tables", "code/labels.txt")
    there = {each for each in project.files if each.startswith("plugin/")}
    assert there == {"plugin/wine.py", "plugin/tables/a.csv", "plugin/labels.txt"}


def test_of_a_folder_what_is_hidden_stays_here(project: Project) -> None:
    code = project.folder / "code"
    (code / ".git").mkdir()
    for name in (".env", ".git/config", ".labels", "labels"):
        (code / name).write_text("1")
    project.write("code", "code/.labels")
    there = {each for each in project.files if each.startswith("plugin/")}
    assert there == {"plugin/wine.py", "plugin/labels", "plugin/.labels"}


def test_only_what_lies_beside_the_plugin_can_be_named(project: Project) -> None:
    assert ".env is not in the plugin's folder @ --include" in project.refusal(".env")
    project.conf["plugin"] = "some.module"
    assert "only a plugin that is a file" in project.refusal("code/wine.py")


def test_a_plugin_that_is_a_module_keeps_its_name(project: Project) -> None:
    project.conf |= {"plugin": "some.module:Wine", "packages": ["some"], "plugin_roots": ["/opt"]}
    project.write()
    assert project.baked["plugin"] == "some.module:Wine"
    assert project.baked["plugin_roots"] == ["/opt"]


@pytest.mark.parametrize(
    ("more", "environ", "baked"),
    [
        ({}, {"SCORER_PLUGIN": "some.module"}, {"plugin": "some.module"}),
        ({}, {"SCORER_PLUGIN": "null"}, {}),
        ({"plugin": "${env:P}"}, {"P": "some.module"}, {"plugin": "some.module"}),
        (
            {"plugin_roots": ["/gone"]},
            {"SCORER_PLUGIN": "some.module", "SCORER_PLUGIN_ROOTS": "[/opt]"},
            {"plugin": "some.module", "plugin_roots": ["/opt"]},
        ),
        ({"plugin": None, "packages": ["rule"]}, {"SCORER_PACKAGES": "[]"}, {}),
        ({"plugin": None, "packages": ["empty.txt"]}, {}, {}),
        ({"plugin": None, "model": {"allow_code": True}}, {"SCORER_MODEL": "{}"}, {}),
    ],
)
def test_what_counts_here_counts_there(
    project: Project, more: dict[str, Any], environ: dict[str, str], baked: dict[str, Any]
) -> None:
    (project.folder / "empty.txt").write_text("# none\n")
    project.conf |= more
    project.write(environ=environ)
    assert project.baked == {"model_uri": "model", **baked}
    assert "plugin/wine.py" not in project.files


def test_roots_are_kept_to_here_and_there(project: Project) -> None:
    roots = {"plugin_roots": [str(project.folder)], "model": {"roots": [str(project.folder)]}}
    project.conf |= roots
    project.write()
    assert project.baked["plugin_roots"] == ["plugin"]
    assert project.baked["model"] == {"roots": ["model"]}


@pytest.mark.parametrize("roots", [{"plugin_roots": ["/opt"]}, {"model": {"roots": ["/opt"]}}])
def test_what_is_in_no_root_is_refused(project: Project, roots: dict[str, Any]) -> None:
    project.conf |= roots
    assert "not within" in project.refusal()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"model_uri": None}, "which model scores must be set @ model_uri"),
        ({"model_uri": "gone"}, "model_uri gone: no such folder"),
        ({"plugin": "gone.py"}, "plugin gone.py: no such file"),
        ({"model_uri": "code"}, "not an MLflow model: it has no MLmodel file"),
    ],
)
def test_what_is_missing_is_told(project: Project, more: dict[str, Any], told: str) -> None:
    project.conf |= more
    assert told in project.refusal()


def test_what_cannot_be_copied_is_told(project: Project) -> None:
    (project.folder / "code" / "tables").mkdir()
    (project.folder / "code" / "tables" / "broken").symlink_to("gone")
    told = project.refusal("code/tables")
    assert told.startswith("cannot be copied: ")
    assert "No such file or directory: " in told
    assert "tables/broken" in told


def test_a_model_that_cannot_be_copied_is_told(project: Project) -> None:
    (project.folder / "model" / "broken").symlink_to("gone")
    assert "model/broken" in project.refusal()


def test_what_can_be_run_here_can_be_run_there(project: Project) -> None:
    tools = project.folder / "code" / "tools"
    tools.mkdir()
    for file in (project.folder / "code" / "tool", tools / "tool"):
        file.write_text("#!/bin/sh")
        file.chmod(0o700)
    project.write("code/tool", "code/tools")
    for place in ("plugin/tool", "plugin/tools/tool"):
        assert (project.context / place).stat().st_mode & 0o777 == 0o755


def test_everybody_may_read_what_one_wrote_for_oneself(project: Project) -> None:
    (project.folder / "model" / "data").chmod(0o700)
    (project.folder / "model" / "data" / "weights").chmod(0o600)
    project.write()
    assert (project.context / "model" / "data").stat().st_mode & 0o777 == 0o755
    assert (project.context / "model" / "data" / "weights").stat().st_mode & 0o777 == 0o644


def test_links_lead_to_files_of_the_context(project: Project) -> None:
    (project.folder / "elsewhere").write_text("2")
    (project.folder / "model" / "link").symlink_to(project.folder / "elsewhere")
    project.write()
    assert (project.context / "model" / "link").read_text() == "2"
    assert not (project.context / "model" / "link").is_symlink()


def test_labels_name_the_model(project: Project) -> None:
    (project.folder / 'a "$model"').symlink_to("model")
    project.conf["model_uri"] = 'a "$model"'
    project.write()
    assert project.dockerfile[-1] == (
        'LABEL org.opencontainers.image.base.name="base:1" '
        r'stream-scorer.model.uri="a \"\$model\"" stream-scorer.model.version="m-1"'
    )


# The command. What stands in for docker notes what it is asked, for want of a daemon.

DOCKER = """\
#!/bin/sh
echo "$@" >>"$NOTES"
if [ "$1" = "$WAITING" ]; then
  trap 'echo told >>"$NOTES"; kill $!; exit 1' TERM
  /bin/sleep 60 >/dev/null 2>&1 &
  echo waiting; wait $!; exit 0
fi
if [ "$1" = "$FAILING" ]; then echo "$1 failed" >&2; exit "$CODE"; fi
"""


class Shell:
    """Runs build-image in a project's folder, with a docker that only takes notes."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._notes = project.folder / "notes"
        self.commands = project.folder / "bin"
        self.commands.mkdir()
        (self.commands / "docker").write_text(DOCKER)
        (self.commands / "docker").chmod(0o755)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        conf = self.project.folder / "conf.yaml"
        conf.write_text(yaml.safe_dump(self.project.conf), encoding="utf-8")
        kept = {name: v for name, v in os.environ.items() if not name.startswith("SCORER_")}
        more = {
            "PYTHONPATH": str(ROOT),
            "PATH": str(self.commands),
            "NOTES": str(self._notes),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "stream_scorer", "build-image", *arguments],
            cwd=self.project.folder,
            env=kept | more | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, failing: str = "", code: int = 1
    ) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, FAILING=failing, CODE=str(code)) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def asked(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    def refusal(self, *arguments: str, exit_code: int, failing: str = "", code: int = 1) -> str:
        done = self.run(*arguments, failing=failing, code=code)
        assert done.returncode == exit_code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1].removeprefix("stream-scorer: ")


@pytest.fixture
def shell(project: Project) -> Shell:
    return Shell(project)


def test_an_image_is_built_checked_and_then_named(shell: Shell) -> None:
    done = shell.run("--tag", "host:5000/wine:1", "--", "--build-arg", "PIP_INDEX_URL")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "host:5000/wine:1: file:model; version=m-1\n"
    version, inspect, build, run, tag, rmi = shell.asked
    assert version.startswith("version ")
    assert inspect.startswith("image inspect ")
    assert build.startswith("build --tag=host:5000/wine:1-unchecked ")
    assert build.rpartition(" ")[0].endswith(" --build-arg PIP_INDEX_URL")
    assert " --pull never --network none --read-only " in run
    assert run.endswith(" host:5000/wine:1-unchecked check --without-secrets --no-timing")
    assert tag == "tag host:5000/wine:1-unchecked host:5000/wine:1"
    assert rmi == "rmi host:5000/wine:1-unchecked"


@pytest.mark.parametrize(("code", "exit_code"), [(1, 1), (2, 2), (125, 1)])
def test_an_image_that_does_not_work_does_not_get_the_name(
    shell: Shell, code: int, exit_code: int
) -> None:
    told = shell.refusal("--tag", "wine", exit_code=exit_code, failing="run", code=code)
    assert told == "the image that was built does not work, see above; it stays wine-unchecked"
    assert not any(line.startswith(("tag", "rmi")) for line in shell.asked)


@pytest.mark.parametrize(
    ("failing", "exit_code", "told"),
    [
        ("version", 1, "no Docker daemon answers: version failed"),
        ("image", 2, "docker build --target worker --build-arg EXTRAS=sklearn -t stream-scorer-wo"),
        ("build", 1, "no image was built: docker build ended with 1, see above"),
        ("tag", 1, "wine-unchecked cannot be renamed wine: tag failed"),
        ("rmi", 1, "wine-unchecked cannot be renamed wine: rmi failed"),
    ],
)
def test_what_docker_lacks_or_refuses_is_one_line(
    shell: Shell, failing: str, exit_code: int, told: str
) -> None:
    assert told in shell.refusal("--tag", "wine", exit_code=exit_code, failing=failing)


def test_another_base_may_be_pulled_by_docker(shell: Shell) -> None:
    done = shell.run("--tag", "wine", "--from", "host/worker@sha256:" + "0" * 64, failing="image")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("step", ["build", "run"])
def test_docker_is_told_to_stop(shell: Shell, step: str) -> None:
    with shell.start("--tag", "wine", WAITING=step) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.terminate()
        assert process.wait(30) == 143
    assert shell.asked[-1] == "told"


def test_without_docker_the_context_is_offered(shell: Shell) -> None:
    (shell.commands / "docker").unlink()
    assert "there is no docker command here" in shell.refusal("--tag", "wine", exit_code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--tag", "a", "--context", "b"),
        ("--context", "b", "--", "--pull"),
        *(("--tag", "a", "--from", name) for name in ("b\nRUN evil", "b AS c", "$b", "")),
        ("--tag", "a", "--include", "gone"),
        ("--context", "code"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_done(
    shell: Shell, arguments: tuple[str, ...]
) -> None:
    assert shell.run(*arguments).returncode == 2
    assert shell.asked == []


def test_a_context_alone_needs_no_docker(shell: Shell) -> None:
    done = shell.run("--context", "out/context", "--from", "localhost/base:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Build it with: docker build --tag NAME out/context\n"
    written = shell.project.folder / "out" / "context"
    assert (written / "Dockerfile").read_text().startswith("FROM localhost/base:1\n")
    assert shell.asked == []


def test_a_context_that_is_refused_is_not_left_half_made(shell: Shell) -> None:
    shell.project.conf["kafka"] = {"sasl.password": CANARY}
    assert "a secret would be" in shell.refusal("--context", "out/context", exit_code=2)
    assert not (shell.project.folder / "out" / "context").exists()


def test_an_example_that_the_facade_would_refuse_is_refused(shell: Shell) -> None:
    shell.project.conf["facade"] = {"examples": {"application/json": "gone.json"}}
    told = shell.refusal("--context", "out", exit_code=2)
    assert told == "file gone.json: No such file or directory @ facade.examples.application/json"
