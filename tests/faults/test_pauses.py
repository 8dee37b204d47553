"""Workers that hang, that are told to leave, and that come and go."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time

import pytest

from tests.engine import ROOT
from tests.faults.conftest import MakeRun, Report
from tests.faults.run import running
from tests.faults.scenarios import WIDE_TURN, gone_and_back_while_scoring
from tests.kafka_server import MakeTopics

DELIVERIES = ("exactly_once", "at_least_once")

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(240)
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_three_zombies(delivery: str, make_run: MakeRun, report: Report) -> None:
    """A worker sleeps until another has its partitions, and wakes with a turn in its hands."""
    stops, session = 3, 2.0
    run = make_run(delivery, requests=6_000, session_timeout=session)
    with running(run, slots=3):
        for number in range(stops):
            run.at_rest()
            run.pace(number, stops)
            slot = run.victim()
            run.freeze(slot, 2 * session)
            # A zombie may end: as a static member it finds that it was fenced.
            run.ended_alone += run.fleet.revive()
        run.answered(run.requests * 3 // 4)
        run.ended_alone += run.fleet.revive()
        verdict = run.verdict(stop=False)
    report(verdict)
    assert not run.invalid(stops)
    assert not verdict.failures
    assert run.ended_alone <= stops


@pytest.mark.timeout(240)
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_rolling_restart(delivery: str, make_run: MakeRun, report: Report) -> None:
    """Each worker in turn is told to leave and is replaced: nothing is answered twice."""
    rounds, slots = 2, 3
    run = make_run(delivery, requests=6_000)
    with running(run, slots=slots):
        turns = itertools.product(range(rounds), range(slots))
        for number, (_, slot) in enumerate(turns):
            run.pace(number, rounds * slots)
            run.victim([slot])
            run.fleet.stop(slot)
            run.fleet.wait_ready(run.fleet.start(slot))
        verdict = run.verdict()
    report(verdict)
    assert not run.invalid(rounds * slots)
    assert verdict.duplicates_allowed == 0
    assert not verdict.failures
    assert run.ended_alone == 0


@pytest.mark.timeout(240)
def test_workers_come_and_go(make_run: MakeRun, report: Report) -> None:
    """A worker more or less every two seconds, for half a minute, one of them always there."""
    changes, pause, most = 15, 2.0, 4
    run = make_run("at_least_once", requests=15_000, predict_ms=1.0)
    with running(run, slots=2):
        adding = True
        for number in range(changes):
            run.pace(number, changes)
            run.hit(busy=bool(run.busy_slots()))
            if adding:
                run.fleet.start(len(run.fleet.slots))
            else:
                last = max(run.fleet.slots)
                run.fleet.wait_ready(run.fleet.slots[last])
                run.fleet.stop(last)
                del run.fleet.slots[last]
            adding = len(run.fleet.slots) < 2 or (adding and len(run.fleet.slots) < most)
            time.sleep(pause)
        verdict = run.verdict()
    report(verdict)
    assert not run.invalid(changes)
    assert not verdict.failures
    assert run.ended_alone == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_leaving_in_the_middle_of_a_rebalance(
    delivery: str, real_kafka: str, topics: MakeTopics
) -> None:
    """Nobody hangs or stays a member, and everybody's last commit is taken."""
    (topic,) = topics(6, "requests")
    members = subprocess.run(
        [sys.executable, "-m", "tests.faults.leaving", real_kafka, topic, delivery, "15"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    left, refused, kept, stayed = map(int, re.findall(r"\d+", members.stdout))
    assert left > 12
    assert refused == 0
    assert kept == 0
    assert stayed == 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_partitions_go_and_come_back_while_scoring(
    delivery: str, make_run: MakeRun, report: Report
) -> None:
    """They were paused when they went; none of them may stay so."""
    run = make_run(delivery, requests=1 + 2 * WIDE_TURN, partitions=4, session_timeout=2.0)
    verdict = gone_and_back_while_scoring(run, [])
    report(verdict)
    assert not verdict.failures
