from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_scorer import failpoints
from stream_scorer.errors import SetupError
from stream_scorer.failpoints import NAMES, VARIABLE, FailpointReached, arm, failpoint

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm({})


def test_nothing_happens_unless_asked_for() -> None:
    arm({})
    for name in NAMES:
        failpoint(name)  # type: ignore[arg-type]
    assert failpoints._armed == {}, "a look-up is all it costs"


@pytest.mark.parametrize("name", NAMES)
def test_each_place_can_be_asked_for(name: str) -> None:
    arm({VARIABLE: f"{name}:raise"})
    with pytest.raises(FailpointReached, match=name):
        failpoint(name)  # type: ignore[arg-type]


def test_it_happens_once_at_the_time_asked_for() -> None:
    arm({VARIABLE: "after_poll:raise:3"})
    failpoint("after_poll")
    failpoint("after_poll")
    with pytest.raises(FailpointReached):
        failpoint("after_poll")
    failpoint("after_poll")
    failpoint("after_decode")


def test_several_are_counted_apart() -> None:
    arm({VARIABLE: "after_poll:raise:2,after_begin:raise"})
    failpoint("after_poll")
    with pytest.raises(FailpointReached, match="after_begin"):
        failpoint("after_begin")
    with pytest.raises(FailpointReached, match="after_poll"):
        failpoint("after_poll")


def test_it_can_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("stream_scorer.failpoints.time.sleep", slept.append)
    arm({VARIABLE: "mid_produce:sleep=0.25"})
    failpoint("mid_produce")
    assert slept == [0.25]


@pytest.mark.parametrize(("action", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_it_can_end_or_stop_the_process(
    monkeypatch: pytest.MonkeyPatch, action: str, number: signal.Signals
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("stream_scorer.failpoints.os.kill", lambda *call: sent.append(call))
    arm({VARIABLE: f"after_commit:{action}"})
    failpoint("after_commit")
    assert sent == [(os.getpid(), number)]


def test_a_kill_is_one() -> None:
    code = (
        "import os; from stream_scorer.failpoints import arm, failpoint\n"
        "arm(os.environ); failpoint('after_poll')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, VARIABLE: "after_poll:kill"},
        check=False,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "text",
    [
        "nowhere:kill",
        "after_poll",
        "after_poll:explode",
        "after_poll:kill:often",
        "after_poll:kill:-1",
    ],
)
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match=f"@ {VARIABLE}"):
        arm({VARIABLE: text})
