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
    *("on_starting", "when_ready", "pre_fork", "post_fork", "post_worker_init"),
    *("pre_request", "child_exit", "on_exit"),
)

STARTING = "import http_facade.gunicorn_conf as conf; conf.on_starting(None)"


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
        "worker_connections": 2000,
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


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("0.0.0.0", True),  # noqa: S104
        ("", True),
        ("::", True),
        ("192.0.2.1", True),
        ("scorer.example", True),
        ("localhost", False),
        ("127.0.0.1", False),
        ("127.3.2.1", False),
        ("::1", False),
    ],
)
def test_without_keys_only_this_machine_may_come_in_unwarned(
    host: str, warned: bool, tmp_path: Path
) -> None:
    done = load(f"host: '{host}'", tmp_path, program=STARTING)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("facade.api_keys is not set") == warned


def test_with_keys_there_is_no_warning(tmp_path: Path) -> None:
    conf = "host: 0.0.0.0\nfacade: {api_keys: [a-key-of-many-characters]}"
    assert load(conf, tmp_path, program=STARTING).stderr == ""


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


def test_there_are_no_more_connections_than_file_descriptors(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 256))\n"
    done = load("", tmp_path, program=limit + SHOW)
    assert done.returncode == 0, done.stderr
    # As many as may be, but for a hundred that are needed for other files.
    assert json.loads(done.stdout)["worker_connections"] == 156
