"""``stream-scorer dev``: everything from one command, and gone on Ctrl-C."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.engine import ROOT, is_ready, numbers_conf, process
from tests.kafka_server import free_ports
from tests.numbers_plugin import expected


def test_dev_answers_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    conf = numbers_conf(tmp_path)
    (port,) = free_ports(1)
    environment = {"SCORER_PORT": str(port), "SCORER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    with process(tmp_path / "log", "dev", "--conf", str(conf), environment=environment) as dev:
        dev.wait_for("readiness", lambda: is_ready(port))
        # Ready means that the model is loaded: the first call is answered.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/api/predict", b"20", {"Content-Type": "text/plain"})
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, expected(20))
        connection.close()
        dev.wait_for("the line to try", lambda: "curl -X POST" in dev.text)
        (line,) = [text for text in dev.text.splitlines() if "export SCORER_KAFKA" in text]
        bootstrap = line.partition("=")[2]
        number = tmp_path / "number.txt"
        number.write_text("6")
        sent = subprocess.run(
            _command("send", str(number), "--content-type", "text/plain"),
            cwd=ROOT,
            env={
                **os.environ,
                "SCORER_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
                "SCORER_TOPICS_CREATE": "false",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (sent.returncode, sent.stdout.strip()) == (0, "19"), sent.stderr
        children = _children(dev.popen.pid)
        assert len(children) == 2
        assert dev.stop(signal.SIGINT) == 0, dev.text
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_every_line_of_every_program_is_json_where_that_is_asked_for(tmp_path: Path) -> None:
    conf = numbers_conf(tmp_path)
    (port,) = free_ports(1)
    environment = {
        "SCORER_PORT": str(port),
        "SCORER_LOGGING_JSON": "true",
        "SCORER_WORKER_PROCESSES": "2",
    }
    with process(tmp_path / "log", "dev", "--conf", str(conf), environment=environment) as dev:
        dev.wait_for("the line to try", lambda: "curl -X POST" in dev.text)
        assert dev.stop(signal.SIGINT) == 0, dev.text
        lines = [json.loads(line) for line in dev.text.splitlines()]
    told = {(line["logger"], line["message"].partition(" ")[0]) for line in lines}
    assert told >= {
        ("stream_scorer.cli.options", "stream-scorer"),  # what dev says first
        ("stream_scorer.cli.options", "Ready."),
        ("stream_scorer.supervisor", "worker"),
        ("stream_scorer.cli.worker", "scoring"),
        ("gunicorn.error", "Listening"),
        ("http_facade.replies", "replies"),
    }


def test_dev_ends_with_what_ended_its_worker(tmp_path: Path) -> None:
    conf = numbers_conf(tmp_path)
    environment = {"SCORER_PORT": str(free_ports(1)[0]), "SCORER_PLUGIN": "no/such/plugin.py"}
    with process(tmp_path / "log", "dev", "--conf", str(conf), environment=environment) as dev:
        assert dev.wait() == 2
        assert "plugin no/such/plugin.py: no such file" in dev.text


def test_dev_does_not_start_beside_another_server_on_its_port(tmp_path: Path) -> None:
    conf = numbers_conf(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {"SCORER_PORT": port, "SCORER_HOST": "127.0.0.1"}
        with process(tmp_path / "log", "dev", "--conf", str(conf), environment=environment) as dev:
            assert dev.wait() == 1
    assert f"127.0.0.1:{port}: Address already in use" in dev.text
    assert "Ready" not in dev.text


def test_dev_stops_when_its_terminal_is_closed(tmp_path: Path) -> None:
    conf = numbers_conf(tmp_path)
    environment = {"SCORER_PORT": str(free_ports(1)[0])}
    with process(tmp_path / "log", "dev", "--conf", str(conf), environment=environment) as dev:
        dev.wait_for("its children", lambda: len(_children(dev.popen.pid)) == 2)
        children = _children(dev.popen.pid)
        assert dev.stop(signal.SIGHUP) == 0, dev.text
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_dev_refuses_exactly_once(tmp_path: Path) -> None:
    conf = numbers_conf(tmp_path)
    environment = {"SCORER_WORKER_DELIVERY": "exactly_once"}
    with process(tmp_path / "log", "dev", "--conf", str(conf), environment=environment) as dev:
        assert dev.wait() == 2
        assert "@ worker.delivery" in dev.text


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stream_scorer", *arguments]


def _children(pid: int) -> list[int]:
    stats = {int(path.parent.name): path for path in Path("/proc").glob("[0-9]*/stat")}
    found = []
    for number, path in stats.items():
        try:
            # "pid (name) state parent …", and the name may hold anything.
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended meanwhile
        if int(parent) == pid:
            found.append(number)
    return found
