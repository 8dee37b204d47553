"""The engine, run by a test: in a thread of its own, or as the process that users start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import yaml

from stream_scorer.config import Settings, load_settings
from stream_scorer.kafka.topics import Topics
from stream_scorer.scorer import Scorer
from stream_scorer.worker import Worker
from tests.numbers_plugin import Plugin

ROOT = Path(__file__).parent.parent
MODEL = "numbers; version=1"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0


def scorer_of(settings: Settings, plugin: Plugin | None = None) -> Scorer:
    return Scorer(
        plugin or Plugin(),
        None,
        payload_bytes=settings.limits.payload_bytes,
        result_bytes=settings.limits.result_bytes,
        max_batch_size=settings.worker.max_batch_size,
    )


@contextmanager
def running_worker(settings: Settings) -> Iterator[Worker]:
    """A worker in a thread; what ended it is raised when the block ends."""
    topics = Topics(settings)
    topics.wait_for_broker(START_TIMEOUT)
    topics.ensure()
    worker = Worker(settings, topics, scorer_of(settings), MODEL, Plugin.content_types)
    with ThreadPoolExecutor(1, "worker") as threads:
        running = threads.submit(worker.run)
        try:
            yield worker
        finally:
            worker.stop()
            running.result(STOP_TIMEOUT)


def settings_for(bootstrap: str, names: Mapping[str, str], **sections: object) -> Settings:
    """Settings as a user would have written them, checked as his are."""
    return load_settings(None, environment_for(bootstrap, names, **sections))


def environment_for(bootstrap: str, names: Mapping[str, str], **sections: object) -> dict[str, str]:
    tree: dict[str, dict[str, object]] = {
        "kafka": {
            "bootstrap.servers": bootstrap,
            "consumer": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000},
        },
        "topics": {**names, "create": False},
    }
    for name, section in sections.items():
        assert isinstance(section, dict)
        tree[name] = {**tree.get(name, {}), **section}
    return {
        f"SCORER_{name.upper()}": yaml.safe_dump(section, default_flow_style=True, width=10_000)
        for name, section in tree.items()
    }


class Process:
    """A command of ours in a process of its own, its output in a file."""

    def __init__(self, log: Path, *arguments: str, environment: Mapping[str, str]) -> None:
        self._log = log.open("ab")
        self.log = log
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "stream_scorer", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_for(self, what: str, there: object) -> None:
        """Wait until ``there()`` is true; fails with the log when it ends or takes too long."""
        assert callable(there)
        deadline = time.monotonic() + START_TIMEOUT
        while not there():
            assert self.popen.poll() is None, f"ended before {what}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.text}"
            time.sleep(0.05)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def send_signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait; fails when the process does not end by itself."""
        self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        try:
            return self.popen.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end:\n{self.text}") from None

    def end(self) -> None:
        """Whatever happened, leave nothing running: not the process, nor those it started."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
        self._log.close()


@contextmanager
def process(log: Path, *arguments: str, environment: Mapping[str, str]) -> Iterator[Process]:
    started = Process(log, *arguments, environment=environment)
    try:
        yield started
    finally:
        started.end()


@contextmanager
def worker_process(
    folder: Path, name: str, environment: Mapping[str, str], conf: str | None = None
) -> Iterator[Process]:
    """A worker as users start it, ready when the block begins."""
    ready = folder / f"{name}.ready"
    ready.unlink(missing_ok=True)
    arguments = ["worker", *(["--conf", conf] if conf else [])]
    with process(
        folder / f"{name}.log",
        *arguments,
        environment={**environment, "SCORER_WORKER_READY_FILE": str(ready)},
    ) as started:
        started.wait_for("assignment", ready.exists)
        yield started


@contextmanager
def facade_process(
    folder: Path, name: str, environment: Mapping[str, str], port: int
) -> Iterator[Process]:
    """A facade as users start it, ready when the block begins."""
    with process(
        folder / f"{name}.log",
        "facade",
        environment={**environment, "SCORER_PORT": str(port), "SCORER_HOST": "127.0.0.1"},
    ) as started:
        started.wait_for("readiness", lambda: is_ready(port))
        yield started


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def numbers_conf(folder: Path) -> Path:
    """A conf for worker processes that score numbers."""
    model = folder / "model"
    model.mkdir()
    (model / "MLmodel").write_text("model_uuid: numbers\nflavors: {none: {}}\n", encoding="utf-8")
    conf = folder / "conf.yaml"
    plugin = ROOT / "tests" / "numbers_plugin.py"
    conf.write_text(
        yaml.safe_dump({"plugin": str(plugin), "model_uri": str(model)}), encoding="utf-8"
    )
    return conf
