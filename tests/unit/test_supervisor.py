from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stream_scorer import health, metrics, supervisor
from stream_scorer.config import Settings
from stream_scorer.supervisor import CALM, FIRST_DELAY, LONGEST_DELAY, Supervisor
from tests.fakes import FakeClock

READY = "import os, pathlib; pathlib.Path(os.environ['SCORER_WORKER_READY_FILE']).touch()\n"
NOTE = (
    "import os, pathlib; note = pathlib.Path(os.environ['NOTES']) / "
    "os.environ['SCORER_WORKER_SLOT']\n"
    "def say(text):\n    with note.open('a') as file: file.write(text + ' ')\n"
)
UNTIL_TERM = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (say('stopped'), sys.exit(0)))\n"
    "say('started')\n" + READY + "time.sleep(60)\n"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTES", str(tmp_path))
    monkeypatch.setenv(metrics.MULTIPROCESS, "")  # put back after the test
    monkeypatch.setattr(supervisor, "TICK", 0.01)


class Run:
    """A supervisor of tiny Python programs, in a thread; stopped at the end in any case."""

    def __init__(self, program: str, **worker: Any) -> None:
        settings = Settings.model_validate({"worker": {"drain_timeout": 5, **worker}})
        self.supervisor = Supervisor(settings, [sys.executable, "-c", program])
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.code = self.supervisor.run()

    def __enter__(self) -> Run:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
        self.join()

    def join(self) -> int | None:
        self._thread.join(30)
        assert not self._thread.is_alive(), "the supervisor does not end"
        return self.code


def until(there: Callable[[], bool]) -> None:
    ticks = threading.Event()
    for _ in range(3000):
        if there():
            return
        ticks.wait(0.01)
    raise AssertionError("it never came to that")


def notes(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().split() for path in folder.iterdir() if path.name.isdigit()}


def test_each_slot_has_a_process_and_all_are_stopped_together(tmp_path: Path) -> None:
    with Run(NOTE + UNTIL_TERM, processes=3, ready_file=tmp_path / "ready") as run:
        until((tmp_path / "ready").exists)
        assert notes(tmp_path) == {slot: ["started"] for slot in "012"}
    assert run.code == 0
    assert notes(tmp_path) == {slot: ["started", "stopped"] for slot in "012"}
    assert not (tmp_path / "ready").exists()


def test_a_worker_is_told_its_place_and_nothing_of_the_others(tmp_path: Path) -> None:
    program = NOTE + (
        "say(os.environ['SCORER_WORKER_PROCESSES'] + os.environ['SCORER_WORKER_METRICS_PORT'])\n"
        "say(str(os.path.isdir(os.environ['PROMETHEUS_MULTIPROC_DIR'])))\n"
    )
    with Run(program + UNTIL_TERM, processes=2, ready_file=tmp_path / "ready"):
        until((tmp_path / "ready").exists)
    assert notes(tmp_path) == {slot: ["10", "True", "started", "stopped"] for slot in "01"}


@pytest.mark.parametrize("code", [1, 2, 7])
def test_one_that_cannot_start_ends_all_with_its_exit_code(tmp_path: Path, code: int) -> None:
    program = NOTE + f"if os.environ['SCORER_WORKER_SLOT'] == '1': raise SystemExit({code})\n"
    with Run(program + UNTIL_TERM, processes=2) as run:
        assert run.join() == code
    # It may be stopped at any moment of its start.
    told = notes(tmp_path).get("0")
    assert not told or "stopped" in told


def test_one_that_is_killed_before_it_was_ready_cannot_start_either() -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with Run(program, processes=2) as run:
        assert run.join() == 1


def test_one_that_dies_is_started_again(tmp_path: Path) -> None:
    once = (
        "if not note.exists():\n    say('first')\n"
        + "".join(f"    {line}\n" for line in READY.splitlines())
        + "    import time; time.sleep(0.5); os._exit(9)\n"
    )
    with Run(NOTE + once + UNTIL_TERM, processes=2):
        until(lambda: [*notes(tmp_path).values()] == [["first", "started"]] * 2)


def test_one_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "SPARE", 0.2)
    program = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        + READY
        + "time.sleep(60)\n"
    )
    with Run(program, processes=2, drain_timeout=0.1, ready_file=tmp_path / "ready") as run:
        until((tmp_path / "ready").exists)
    assert run.code == 0
    assert caplog.text.count("is killed") == 2


def test_its_end_closes_their_standard_input(tmp_path: Path) -> None:
    """Whoever is left behind by a supervisor that was killed can tell by that."""
    program = NOTE + READY + "import sys; say('open'); sys.stdin.buffer.read(); say('closed')\n"
    with Run(program + "import time; time.sleep(60)", processes=1, ready_file=tmp_path / "ready"):
        until(lambda: notes(tmp_path) == {"0": ["open"]})


class FakeProcess:
    """A process that has ended with ``code``, once one is set."""

    pid = 1
    stdin = None

    def __init__(self) -> None:
        self.code: int | None = None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def wait(self, timeout: float | None = None) -> int:
        return 0


class Rig:
    """A supervisor of one fake process; time moves when it sleeps. ``on_tick`` runs then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.started: list[tuple[float, FakeProcess]] = []
        self.supervisor = Supervisor(Settings(), ["worker"])
        self.on_tick: Callable[[], None] = lambda: None
        monkeypatch.setattr("stream_scorer.supervisor.time.monotonic", self.clock)
        monkeypatch.setattr("stream_scorer.supervisor.time.sleep", self._sleep)
        monkeypatch.setattr("stream_scorer.supervisor.subprocess.Popen", self._start)

    def _sleep(self, seconds: float) -> None:
        self.clock.move(seconds)
        self.on_tick()

    def _start(self, _: object, env: dict[str, str], **__: object) -> FakeProcess:
        process = FakeProcess()
        self.started.append((self.clock.now, process))
        Path(env["SCORER_WORKER_READY_FILE"]).touch()
        return process

    def lives(self, seconds: float, times: int) -> list[float]:
        """Let each process die after so long; the delays until the next was started."""
        died: list[float] = []

        def tick() -> None:
            began, process = self.started[-1]
            if process.code is None and self.clock.now >= began + seconds:
                process.code = -signal.SIGKILL
                died.append(self.clock.now)
            if len(self.started) > times:
                self.supervisor.stop()

        self.on_tick = tick
        assert self.supervisor.run() == 0
        return [start - end for end, (start, _) in zip(died, self.started[1:], strict=False)]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    yield Rig(monkeypatch)


def test_the_first_restart_is_at_once_and_the_next_wait_longer(rig: Rig) -> None:
    delays = rig.lives(1.0, 10)
    expected = [0.0, *(min(LONGEST_DELAY, FIRST_DELAY * 2**n) for n in range(9))]
    # Seen a tick late, and started a tick after.
    assert delays == pytest.approx(expected, abs=2.5 * supervisor.TICK)
    assert delays[-1] == pytest.approx(LONGEST_DELAY, abs=2.5 * supervisor.TICK)


def test_after_a_calm_time_earlier_deaths_count_no_more(rig: Rig) -> None:
    assert max(rig.lives(CALM + 1, 6)) <= 2.5 * supervisor.TICK


def test_the_living_are_told_to_stop(rig: Rig) -> None:
    rig.on_tick = rig.supervisor.stop
    assert rig.supervisor.run() == 0
    assert rig.started[0][1].signals == [signal.SIGTERM]


def test_a_death_is_logged_with_its_reason(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    rig.lives(1.0, 1)
    assert "worker 0 died (signal SIGKILL), again in 0.0 s" in caplog.text


def test_a_worker_that_hangs_takes_the_ready_file_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(NOTE + UNTIL_TERM, processes=2, ready_file=tmp_path / "ready"):
        until((tmp_path / "ready").exists)
        # What was ready gives no sign of life any more.
        monkeypatch.setattr(health, "STUCK_AFTER", -1.0)
        until(lambda: not (tmp_path / "ready").exists())
