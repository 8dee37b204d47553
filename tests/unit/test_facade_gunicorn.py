"""The server's settings follow from ours. Read in a process of their own: they set up logging."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHOW = """
import json, http_facade.gunicorn_conf as conf
from gunicorn.config import KNOWN_SETTINGS
known = {setting.name for setting in KNOWN_SETTINGS}
shown = {name: value for name, value in vars(conf).items() if name in known and name.islower()}
print(json.dumps(shown, default=lambda value: value.__name__))
"""

HOOKS = (
    *("on_starting", "when_ready", "pre_fork", "post_fork"),
    *("pre_request", "child_exit", "on_exit"),
)


def load(
    conf: str, folder: Path, *, program: str = SHOW, **environ: str
) -> subprocess.CompletedProcess[str]:
    file = folder / "conf.yaml"
    file.write_text(conf, encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if "SCORER" not in name}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, "PYTHONPATH": str(Path.cwd()), "SCORER_CONF": str(file), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def loaded(conf: str, folder: Path, **environ: str) -> dict[str, Any]:
    done = load(conf, folder, **environ)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_defaults_are_safe(tmp_path: Path) -> None:
    found = loaded("", tmp_path)
    memory = found.pop("worker_tmp_dir", None)
    assert memory == ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)  # noqa: S108
    assert found == {
        "bind": "localhost:5005",
        "workers": 1,
        "worker_class": "asgi",
        "asgi_lifespan": "on",
        "timeout": 30,
        "graceful_timeout": 15,
        "keepalive": 5,
        "preload_app": False,
        "control_socket_disable": True,
        "loglevel": "info",
        "errorlog": None,
        "accesslog": None,
        **{name: name for name in HOOKS},
    }


def test_it_follows_the_conf_file_and_the_environment(tmp_path: Path) -> None:
    conf = "host: 0.0.0.0\nport: 80\nlogging: {level: DEBUG}\nfacade: {timeout: 29.5}\n"
    found = loaded(conf, tmp_path, SCORER_PORT="8080", SCORER_FACADE_PROCESSES="3")
    assert (found["bind"], found["workers"]) == ("0.0.0.0:8080", 3)
    assert found["loglevel"] == "debug"
    # The facade's own timeouts come first: of a body that stops, and of requests at shutdown.
    assert found["timeout"] > 30
    assert found["graceful_timeout"] > 30


@pytest.mark.parametrize(("host", "bind"), [("::1", "[::1]:5005"), ("example", "example:5005")])
def test_addresses_of_both_kinds(host: str, bind: str, tmp_path: Path) -> None:
    assert loaded(f"host: '{host}'", tmp_path)["bind"] == bind


def test_a_wrong_setting_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = load("facade: {timeout: -1}", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "@ facade.timeout" in done.stderr


def test_it_logs_as_the_settings_say(tmp_path: Path) -> None:
    program = SHOW + "import logging; logging.getLogger('gunicorn.error').warning('told')"
    for conf, told in (("logging: {format: '|%(message)s|'}", "|told|"), ("logging: {json: 1}", 0)):
        done = load(conf, tmp_path, program=program)
        (line,) = done.stderr.splitlines()
        assert line == told if told else json.loads(line)["message"] == "told"
