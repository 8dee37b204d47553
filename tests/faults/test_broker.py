"""A broker that hangs, and one that is killed and comes back with the same data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.faults.conftest import MakeRun, Report
from tests.faults.faults import crash_broker, freeze_broker
from tests.faults.run import running
from tests.kafka_server import KafkaServer

DELIVERIES = ("exactly_once", "at_least_once")

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(300)
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_broker_hangs_and_crashes(
    delivery: str, kafka_server: KafkaServer, make_run: MakeRun, report: Report
) -> None:
    faults: list[Callable[[KafkaServer], None]] = [freeze_broker, crash_broker]
    run = make_run(delivery, requests=6_000)
    slots = 3
    with running(run, slots=slots):
        for number, fault in enumerate(faults):
            run.pace(number, len(faults))
            run.everyone_hit(partial(fault, kafka_server))
        verdict = run.verdict(stop=False)
    report(verdict)
    assert not run.invalid(len(faults))
    assert not verdict.failures
    assert run.ended_alone <= len(faults) * slots
