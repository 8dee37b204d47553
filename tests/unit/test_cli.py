from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_scorer.cli import COMMANDS

ROOT = Path(__file__).parents[2]
CANARY = "canary-7f3a"

PLUGIN = """
from stream_scorer import plugins

class Plugin(plugins.Plugin):
    content_types = ("application/json", "text/plain")
    def load_model(self, model_uri):
        return 2
    def decode(self, payload, content_type):
        if not payload.strip().isdigit():
            raise plugins.InvalidPayload("not a number")
        return int(payload)
    def predict(self, model, instances):
        return [model * number for number in instances]
"""


class Shell:
    """Runs the command line in a folder that holds a plugin and a model, and a conf of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "plugin.py").write_text(PLUGIN, encoding="utf-8")
        (folder / "model").mkdir()
        (folder / "model" / "MLmodel").write_text("flavors: {}\nmodel_id: m-1\n", encoding="utf-8")
        (folder / "number.json").write_text("21", encoding="utf-8")
        (folder / "word.json").write_text("word", encoding="utf-8")
        self.environ: dict[str, str] = {}
        self.conf: dict[str, Any] = {"plugin": "plugin.py", "model_uri": "file:model"}

    def run(self, *arguments: str, conf: str | None = None) -> subprocess.CompletedProcess[str]:
        """One command; its conf is ``conf``, else what the attribute says."""
        text = yaml.safe_dump(self.conf) if conf is None else conf
        (self.folder / "conf.yaml").write_text(text, encoding="utf-8")
        kept = {name: v for name, v in os.environ.items() if not name.startswith("SCORER_")}
        return subprocess.run(
            [sys.executable, "-m", "stream_scorer", *arguments],
            cwd=self.folder,
            env={**kept, "PYTHONPATH": str(ROOT), **self.environ},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def refusal(self, *arguments: str, code: int = 2, conf: str | None = None) -> str:
        """The one line that a command ends with."""
        done = self.run(*arguments, conf=conf)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        told = [line for line in done.stderr.splitlines() if line.startswith("stream-scorer: ")]
        assert len(told) == 1, done.stderr
        assert done.stderr.splitlines()[-1] == told[0]
        return told[0].removeprefix("stream-scorer: ")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# Help.

HEAVY = {"confluent_kafka", "mlflow", "pydantic", "numpy", "falcon", "gunicorn", "yaml", "pandas"}


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)], ids=str)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_answers_without_importing_anything_heavy(
    arguments: tuple[str, ...], option: str
) -> None:
    program = (
        "import atexit, json, sys; sys.argv[0] = 'stream-scorer'\n"
        "atexit.register(lambda: print(json.dumps([*sys.modules]), file=sys.stderr))\n"
        "from stream_scorer.cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, option],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Usage: stream-scorer ")
    imported = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert "click" in imported
    assert imported.isdisjoint(HEAVY)


def test_help_names_every_command(shell: Shell) -> None:
    told = shell.run("--help").stdout
    assert all(f"\n  {name} " in told for name in COMMANDS)
    assert {"dev", "worker", "facade", "send", "check"} <= set(COMMANDS)
    assert "Exit codes" in told


def test_the_version_is_told(shell: Shell) -> None:
    from stream_scorer import __version__

    done = shell.run("--version")
    assert (done.returncode, __version__ in done.stdout) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [
        *((), ("nothing",), ("worker", "--nothing"), ("check", "missing.json"), ("send",)),
        *(("send", "number.json"), ("send", "missing.json", "--content-type", "a/b")),
        ("send", "number.json", "--content-type", "a/b", "--count", "0"),
    ],
    ids=str,
)
def test_wrong_usage_exits_with_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    done = shell.run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# The conf.


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "new"])
def test_every_command_refuses_a_wrong_conf_with_one_line_and_2(shell: Shell, command: str) -> None:
    more = {
        "send": ["number.json", "--content-type", "a/b"],
        "build-image": ["--context", "context"],
    }
    assert shell.refusal(command, *more.get(command, []), conf="prot: 1\n") == "unknown key @ prot"


def test_a_conf_that_is_not_there_is_named(shell: Shell) -> None:
    told = shell.refusal("check", "--conf", "missing.yaml")
    assert told == "missing.yaml: No such file or directory"


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ("port: [", "conf.yaml:"),
        ("worker: {delivery: maybe}", "@ worker.delivery"),
        ("logging: {format: '{message}'}", "@ logging.format"),
        ("kafka: {group.id: mine}", "group.id cannot be set: set worker.group instead @ kafka"),
        ("host: ${env:NOT_SET}", "environment variable NOT_SET is not set @ host"),
        ("port: 5005", "@ model_uri"),
        ("plugin: plugin.py", "@ model_uri"),
        ("plugin: missing.py\nmodel_uri: model", "plugin missing.py: no such file"),
        ("plugin: plugin.py\nmodel_uri: missing", "model_uri missing: no such folder"),
        (
            "plugin: plugin.py\nmodel_uri: model\npackages: [-r other.txt]",
            "'-r other.txt' is not a package requirement @ packages",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_and_2(shell: Shell, conf: str, message: str) -> None:
    assert message in shell.refusal("check", conf=conf)


def test_a_plugin_that_exits_does_not_pass_for_success(shell: Shell) -> None:
    (shell.folder / "plugin.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    assert "plugin.py:2: SystemExit: 0" in shell.refusal("check")


def test_a_pickled_model_is_refused_with_the_way_to_allow_it(shell: Shell) -> None:
    (shell.folder / "model" / "model.pkl").write_bytes(b"\x80\x04.")
    assert "allow it with `model: {allow_pickle: true}`" in shell.refusal("check")
    shell.environ["SCORER_MODEL_ALLOW_PICKLE"] = "true"
    assert shell.run("check").returncode == 0


def test_where_lines_are_json_what_ends_a_command_is_one_too(shell: Shell) -> None:
    done = shell.run("check", conf="logging: {json: true}")
    assert done.returncode == 2
    (line,) = [json.loads(text) for text in done.stderr.splitlines()]
    assert (line["level"], "@ model_uri" in line["message"]) == ("ERROR", True)


def test_secrets_are_masked_where_the_conf_is_shown(shell: Shell) -> None:
    (shell.folder / "secret").write_text(CANARY, encoding="utf-8")
    shell.conf["kafka"] = {
        "sasl.username": "me",
        "sasl.password": "${file:secret}",
        "producer": {"ssl.key.pem": "${env:PEM}"},
    }
    shell.environ |= {"PEM": CANARY, "SCORER_KAFKA_CONSUMER_SSL_KEY_PASSWORD": CANARY}
    done = shell.run("check", "--show-conf")
    assert done.returncode == 0
    assert CANARY not in done.stdout + done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["kafka"]["sasl.username"] == "me"
    assert shown["kafka"]["sasl.password"] == shown["kafka"]["producer"]["ssl.key.pem"]
    assert shown["worker"]["group"] == "stream-scorer"


def test_no_error_tells_a_secret(shell: Shell, closed_port: int) -> None:
    shell.conf["kafka"] = {
        "bootstrap.servers": f"127.0.0.1:{closed_port}",
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "me",
        "sasl.password": CANARY,
    }
    shell.environ["SCORER_WORKER_STARTUP_TIMEOUT"] = "1"
    assert CANARY not in shell.run("worker").stderr
    shell.conf["kafka"]["no.such.property"] = CANARY
    assert "no.such.property" in shell.refusal("worker")
    assert CANARY not in shell.run("worker").stderr


def test_the_conf_is_named_by_the_option_else_the_environment(shell: Shell) -> None:
    for name, port in (("a.yaml", 1), ("b.yaml", 2)):
        (shell.folder / name).write_text(f"port: {port}\n", encoding="utf-8")
    shell.environ["SCORER_CONF"] = "a.yaml"
    assert yaml.safe_load(shell.run("check", "--show-conf").stdout)["port"] == 1
    done = shell.run("check", "--show-conf", "--conf", "b.yaml")
    assert yaml.safe_load(done.stdout)["port"] == 2


# check.


def test_check_scores_a_file_without_kafka(shell: Shell) -> None:
    shell.conf["kafka"] = {"bootstrap.servers": "192.0.2.1:9"}
    done = shell.run("check", "number.json", "--no-timing")
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert "model file:model; version=m-1" in done.stderr
    assert "requests/s" not in done.stderr


def test_check_without_a_file_loads_plugin_and_model(shell: Shell) -> None:
    done = shell.run("check")
    assert (done.returncode, done.stdout) == (0, "")
    assert "plugin plugin.py: application/json, text/plain" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("word.json",), "invalid-payload"),
        (("number.json", "--content-type", "image/png"), "unsupported-content-type"),
        (("plugin.py",), "unsupported-content-type"),
    ],
)
def test_check_exits_with_1_when_the_answer_is_a_problem(
    shell: Shell, arguments: tuple[str, ...], status: str
) -> None:
    done = shell.run("check", *arguments)
    assert done.returncode == 1
    assert json.loads(done.stdout)["type"].endswith(status)


def test_check_can_be_told_the_media_type(shell: Shell) -> None:
    (shell.folder / "number").write_text("4", encoding="utf-8")
    assert shell.run("check", "number").returncode == 1
    done = shell.run("check", "number", "--content-type", "text/plain", "--no-timing")
    assert done.stdout == "8\n"


TIMED = re.compile(r"^ +(\d+)(?: +[\d.]+){4} +[\d,]+$", re.MULTILINE)


def test_check_times_batches_and_suggests_one_beside_the_answer(shell: Shell) -> None:
    shell.conf["worker"] = {"max_batch_size": 3}
    done = shell.run("check", "number.json")
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert TIMED.findall(done.stderr) == ["1", "2", "3"]
    (chosen,) = re.findall(r"^worker.max_batch_size: (\d) is enough", done.stderr, re.MULTILINE)
    assert chosen in "123"
    assert ("It is the largest allowed" in done.stderr) is (chosen == "3")
    assert "\r" not in done.stderr  # the progress is for terminals


def test_check_times_no_larger_batch_than_the_plugin_takes(shell: Shell) -> None:
    own = PLUGIN.replace("    def load_model", "    max_batch_size = 2\n    def load_model")
    (shell.folder / "plugin.py").write_text(own, encoding="utf-8")
    assert TIMED.findall(shell.run("check", "number.json").stderr) == ["1", "2"]


def test_check_without_a_file_times_the_model_s_example(shell: Shell) -> None:
    shell.conf["worker"] = {"max_batch_size": 1}
    model = shell.folder / "model"
    told = "flavors: {}\nsaved_input_example_info: {serving_input_path: example.json}\n"
    (model / "MLmodel").write_text(told, encoding="utf-8")
    (model / "example.json").write_text("21", encoding="utf-8")
    done = shell.run("check")
    assert (done.returncode, done.stdout) == (0, "")
    assert TIMED.findall(done.stderr) == ["1"]
    (model / "example.json").write_text('"word"', encoding="utf-8")
    done = shell.run("check")
    assert (done.returncode, done.stdout) == (0, "")
    assert "not timed: the plugin does not take the model's input example" in done.stderr


def test_check_tells_of_plugin_model_and_libraries(shell: Shell) -> None:
    documented = PLUGIN.replace("plugins.Plugin):", "plugins.Plugin):\n    '''Doubles.'''")
    (shell.folder / "plugin.py").write_text(documented, encoding="utf-8")
    (shell.folder / "model" / "MLmodel").write_text(
        "flavors: {sums: {}, python_function: {python_version: 3.1.2}}\nmodel_id: m-1\n"
        'signature:\n  inputs: \'[{"type": "double", "name": "a"}]\'\n'
        '  outputs: null\n  params: \'[{"name": "factor"}]\'\n',
        encoding="utf-8",
    )
    told = shell.run("check").stderr
    for line in (
        *("plugin plugin.py: application/json, text/plain", "  Doubles."),
        *("model file:model; version=m-1", "  flavors  sums, python_function"),
        *("  takes    a (double)", "  gives    not said", "  params   factor"),
        *("  on disk  0 kB in 1 file", "installed"),
        "not timed: the model has no input example; name a FILE",
    ):
        assert f"\n{line}\n" in f"\n{told}"
    versions = dict(re.findall(r"^  ([\w-]+) +(\d[\w.]+)(?:  |$)", told, re.MULTILINE))
    assert {"Python", "stream-scorer", "numpy"} <= versions.keys()
    assert "the model asks for ==3.1.2" in told


# Brokers.


def test_a_broker_that_does_not_answer_is_named_and_1(shell: Shell, closed_port: int) -> None:
    shell.environ |= {
        "SCORER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{closed_port}",
        "SCORER_WORKER_STARTUP_TIMEOUT": "1",
    }
    told = shell.refusal("worker", code=1)
    assert told.startswith(f"cannot reach Kafka at 127.0.0.1:{closed_port}: ")


@pytest.mark.parametrize(
    "kafka",
    [
        {"no.such.property": 1},
        {"linger.ms": "soon"},
        {"consumer": {"no.such.property": 1}},
        {"producer": {"acks": 0}},
    ],
    ids=str,
)
def test_a_wrong_property_is_2_at_once_not_after_the_broker(
    shell: Shell, closed_port: int, kafka: dict[str, Any]
) -> None:
    """The default is to wait a minute for a broker, longer than this test would."""
    shell.conf["kafka"] = {"bootstrap.servers": f"127.0.0.1:{closed_port}", **kafka}
    assert "@ kafka" in shell.refusal("worker")


def test_an_interval_between_polls_of_half_a_minute_is_taken(
    shell: Shell, closed_port: int
) -> None:
    """The client wants it above the session's timeout, which is not left at its 45 s."""
    properties = {"bootstrap.servers": f"127.0.0.1:{closed_port}"}
    shell.conf["kafka"] = {**properties, "consumer": {"max.poll.interval.ms": 30_000}}
    shell.environ["SCORER_WORKER_STARTUP_TIMEOUT"] = "1"
    assert "cannot reach Kafka" in shell.refusal("worker", code=1)


def test_the_embedded_broker_keeps_no_transactions(shell: Shell) -> None:
    shell.environ["SCORER_WORKER_DELIVERY"] = "exactly_once"
    assert shell.refusal("dev").endswith("@ worker.delivery")
