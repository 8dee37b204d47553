"""Workers that are killed: at random, and at every place of the loop."""

from __future__ import annotations

import statistics

import pytest

from tests.faults.conftest import MakeRun, Report
from tests.faults.faults import kill_at, places_of
from tests.faults.run import NEXT_COMMIT_LIMIT, running

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("delivery", "session"), [("exactly_once", 12.0), ("at_least_once", 2.0)])
def test_twenty_kills(delivery: str, session: float, make_run: MakeRun, report: Report) -> None:
    kills = 20
    run = make_run(delivery, requests=20_000, session_timeout=session)
    with running(run, slots=3):
        for number in range(kills):
            if delivery == "at_least_once":
                run.at_rest()
            run.pace(number, kills)
            run.kill(run.victim())
        verdict = run.verdict()
    report(verdict)
    assert not run.invalid(kills)
    assert not verdict.failures
    assert run.ended_alone == 0
    if delivery == "exactly_once":
        # Half of them at least: one may meet the next kill, or a machine that is busy elsewhere.
        assert statistics.median(run.next_commits()) <= NEXT_COMMIT_LIMIT


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("delivery", "session"), [("exactly_once", 6.0), ("at_least_once", 2.0)])
def test_a_kill_at_every_failpoint(
    delivery: str, session: float, make_run: MakeRun, report: Report
) -> None:
    """Each slot in turn gets a worker that dies at the third time it comes by the next place."""
    names = places_of(delivery)
    run = make_run(delivery, requests=1_200 * (len(names) + 1), session_timeout=session)
    with running(run, slots=3):
        for number, name in enumerate(names):
            run.pace(number, len(names))
            kill_at(run, name)
        verdict = run.verdict()
    report(verdict)
    assert not run.invalid(len(names))
    assert not verdict.failures
    assert run.ended_alone == 0
