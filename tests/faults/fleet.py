"""Worker processes, each known by its slot and incarnation: ``s1-i3`` is the third in slot 1.

The name is also that of its model's folder, so every answer tells by its ``model`` header which
process gave it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.engine import ROOT

START_TIMEOUT = 60.0
STOP_TIMEOUT = 40.0


@dataclass(slots=True)
class WorkerProcess:
    """A worker process and the files by which it can be watched."""

    name: str
    slot: int
    popen: subprocess.Popen[bytes]
    mark: Path
    successor: bool

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    @property
    def ready(self) -> bool:
        return self.marked("ready")

    def marked(self, mark: str) -> bool:
        return self._file(mark).exists()

    def unmark(self, mark: str) -> None:
        self._file(mark).unlink(missing_ok=True)

    @property
    def loaded_at(self) -> float | None:
        """When its model was loaded, in seconds since the epoch."""
        file = self._file("loaded")
        return file.stat().st_mtime if file.exists() else None

    @property
    def log(self) -> str:
        return self._file("log").read_text(errors="replace")

    def _file(self, mark: str) -> Path:
        return self.mark.with_name(f"{self.mark.name}.{mark}")


@dataclass(slots=True)
class Fleet:
    """Starts workers in slots and ends them.

    Args:
        folder: where their files go.
        environment: what all of them share.
        predict_ms: how long the model takes for one request.
    """

    folder: Path
    environment: Mapping[str, str]
    predict_ms: float = 2.0
    started: list[WorkerProcess] = field(default_factory=list)
    """Every process there ever was."""
    slots: dict[int, WorkerProcess] = field(default_factory=dict)
    """The latest of each slot."""

    def start(
        self,
        slot: int,
        *,
        failpoint: str = "",
        planted: Sequence[str] = (),
        hold: Path | None = None,
    ) -> WorkerProcess:
        """Start a worker in a slot, and do not wait for it.

        Args:
            slot: the slot, which nobody may be at work in.
            failpoint: for ``SCORER_FAILPOINT``.
            planted: the bugs and provocations of ``tests.faults.planted`` to run with.
            hold: a file; no prediction ends while it is there.
        """
        incarnation = sum(worker.slot == slot for worker in self.started)
        name = f"s{slot}-i{incarnation}"
        mark = self.folder / name
        module = "tests.faults.planted" if planted else "stream_scorer"
        with (self.folder / f"{name}.log").open("wb") as log:
            popen = subprocess.Popen(
                # Supervised: it stops when its standard input closes, so none outlives a test.
                [sys.executable, "-m", module, "worker", "--supervised", "--conf", self._conf()],
                cwd=ROOT,
                env={
                    **os.environ,
                    **self.environment,
                    "SCORER_WORKER_SLOT": str(slot),
                    "SCORER_WORKER_READY_FILE": f"{mark}.ready",
                    "SCORER_MODEL_URI": str(self._model(name)),
                    "SCORER_FAILPOINT": failpoint,
                    "FAULTS_MARK": str(mark),
                    "FAULTS_PREDICT_MS": str(self.predict_ms),
                    "FAULTS_HOLD": str(hold or ""),
                    "FAULTS_PLANTED": ",".join(planted),
                },
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = WorkerProcess(name, slot, popen, mark, successor=slot in self.slots)
        self.started.append(worker)
        self.slots[slot] = worker
        return worker

    def wait_ready(self, *workers: WorkerProcess) -> None:
        """Wait until these have joined the group; fails when one ends instead."""
        deadline = time.monotonic() + START_TIMEOUT
        for worker in workers:
            while not worker.ready:
                assert worker.running, f"{worker.name} ended: {worker.log[-4000:]}"
                assert time.monotonic() < deadline, f"{worker.name} not ready: {worker.log[-4000:]}"
                time.sleep(0.02)

    def kill(self, slot: int) -> None:
        worker = self.slots[slot]
        worker.popen.kill()
        worker.popen.wait()

    def signal(self, slot: int, number: signal.Signals) -> None:
        self.slots[slot].popen.send_signal(number)

    def wait_killed(self, worker: WorkerProcess) -> None:
        """Wait until a failpoint has killed this worker."""
        try:
            code = worker.popen.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{worker.name} was not killed: {worker.log[-4000:]}") from None
        assert code == -signal.SIGKILL, f"{worker.name} ended with {code}: {worker.log[-4000:]}"

    def revive(self) -> int:
        """Start each slot again whose worker has ended; how many that were."""
        dead = [slot for slot, worker in self.slots.items() if not worker.running]
        for slot in dead:
            self.start(slot)
        return len(dead)

    def stop(self, *slots: int) -> None:
        """Stop these workers, or else all, as an operator would; each must end well."""
        workers = [self.slots[slot] for slot in slots or tuple(self.slots)]
        workers = [worker for worker in workers if worker.running]
        # One that has only just been started has no handler for the signal yet.
        self.wait_ready(*workers)
        for worker in workers:
            worker.popen.send_signal(signal.SIGTERM)
        for worker in workers:
            try:
                code = worker.popen.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{worker.name} goes on: {worker.log[-4000:]}") from None
            assert code == 0, f"{worker.name} ended with {code}: {worker.log[-4000:]}"

    def end(self) -> None:
        """Whatever happened, leave nothing running."""
        for worker in self.started:
            if worker.running:
                worker.popen.kill()
                worker.popen.wait()
            if worker.popen.stdin is not None:
                worker.popen.stdin.close()

    def _model(self, name: str) -> Path:
        model = self.folder / "models" / name
        model.mkdir(parents=True)
        (model / "MLmodel").write_text(
            "model_uuid: numbers\nflavors: {none: {}}\n", encoding="utf-8"
        )
        return model

    def _conf(self) -> str:
        conf = self.folder / "conf.yaml"
        if not conf.exists():
            plugin = ROOT / "tests" / "faults" / "steady_plugin.py"
            conf.write_text(yaml.safe_dump({"plugin": str(plugin)}), encoding="utf-8")
        return str(conf)
