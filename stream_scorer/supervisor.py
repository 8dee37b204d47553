"""N worker processes on one machine: started, watched, started again, stopped together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stream_scorer import metrics
from stream_scorer.config import Settings
from stream_scorer.health import Pulses, serve

_log = logging.getLogger(__name__)

TICK: Final = 0.1
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
CALM: Final = 60.0
"""Seconds of work after which a worker's earlier deaths no longer count."""

SPARE: Final = 3.0
"""Seconds beyond ``worker.drain_timeout`` until a worker that does not end is killed."""


@dataclass(slots=True)
class _Slot:
    """One of the N: its process, and when it may be started again."""

    number: int
    ready_file: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    was_ready: bool = False
    deaths: int = 0
    not_before: float = 0.0


class Supervisor:
    """Runs ``worker.processes`` workers until it is stopped.

    Every worker is a process of its own from the start: Kafka clients do not survive a fork. One
    that dies is started again, at once for the first time, then with growing delays. One that
    ends before it was ever ready cannot start, and ends them all.

    Args:
        settings: the settings.
        command: what starts a worker; its standard input is a pipe that closes when the
            supervisor is gone.
    """

    def __init__(self, settings: Settings, command: Sequence[str]) -> None:
        self._settings = settings
        self._command = command
        self._stopping = False

    def stop(self) -> None:
        """Have the workers drain and end. Only sets a flag."""
        self._stopping = True

    def run(self) -> int:
        """Supervise until stopped; returns the exit code."""
        worker = self._settings.worker
        with tempfile.TemporaryDirectory(prefix="stream-scorer-") as name:
            folder = Path(name)
            os.environ[metrics.MULTIPROCESS] = str(folder)
            slots = [_Slot(n, folder / f"ready-{n}") for n in range(worker.processes)]
            pulses = Pulses([slot.ready_file for slot in slots])
            server = None
            if worker.metrics_port:
                server = serve(worker.metrics_host, worker.metrics_port, pulses, metrics.all_slots)
            try:
                return self._watch(slots, pulses)
            finally:
                self._end(slots)
                self._announce(ready=False)
                if server is not None:
                    server.shutdown()
                    server.server_close()

    def _watch(self, slots: Sequence[_Slot], pulses: Pulses) -> int:
        while not self._stopping:
            for slot in slots:
                if slot.process is None:
                    if time.monotonic() >= slot.not_before:
                        self._start(slot)
                    continue
                slot.was_ready = slot.was_ready or slot.ready_file.exists()
                code = slot.process.poll()
                if code is None:
                    continue
                if not slot.was_ready and slot.deaths == 0:
                    _log.error("worker %d cannot start (%s)", slot.number, _ending(code))
                    return code if code > 0 else 1
                self._bury(slot, code)
            self._announce(ready=pulses.ready() and pulses.alive())
            time.sleep(TICK)
        return 0

    def _start(self, slot: _Slot) -> None:
        environment = {
            **os.environ,
            "SCORER_WORKER_PROCESSES": "1",
            "SCORER_WORKER_SLOT": str(slot.number),
            "SCORER_WORKER_READY_FILE": str(slot.ready_file),
            "SCORER_WORKER_METRICS_PORT": "0",
        }
        slot.process = subprocess.Popen(
            self._command,
            env=environment,
            stdin=subprocess.PIPE,
            # Ctrl-C reaches the supervisor alone, which then stops them all.
            start_new_session=True,
        )
        slot.started = time.monotonic()
        slot.was_ready = False
        _log.info("worker %d started, process %d", slot.number, slot.process.pid)

    def _bury(self, slot: _Slot, code: int) -> None:
        now = time.monotonic()
        if now - slot.started >= CALM:
            slot.deaths = 0
        delay = 0.0
        if slot.deaths:
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (slot.deaths - 1))
        slot.deaths += 1
        slot.not_before = now + delay
        slot.ready_file.unlink(missing_ok=True)
        _close_input(slot.process)
        slot.process = None
        _log.error("worker %d died (%s), again in %.1f s", slot.number, _ending(code), delay)

    def _end(self, slots: Sequence[_Slot]) -> None:
        processes = [slot.process for slot in slots if slot.process is not None]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.worker.drain_timeout + SPARE
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("process %d did not end in time and is killed", process.pid)
                process.kill()
                process.wait()
            _close_input(process)

    def _announce(self, *, ready: bool) -> None:
        path = self._settings.worker.ready_file
        if path is None:
            return
        if ready:
            path.touch()
        else:
            path.unlink(missing_ok=True)


def _close_input(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.stdin is not None:
        process.stdin.close()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
