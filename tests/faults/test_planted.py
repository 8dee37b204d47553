"""The verifier itself: each planted bug must make it fail, where the product passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.conftest import MakeRun, Report
from tests.faults.late_end import LateEnd
from tests.faults.planted_cases import CASES, Case, late_commit_case
from tests.kafka_server import KafkaServer, KafkaUnavailable

pytestmark = pytest.mark.chaos


@pytest.fixture
def proxy() -> Iterator[LateEnd]:
    """A proxy, to start a broker with."""
    with LateEnd() as proxy:
        yield proxy


@pytest.fixture
def kafka_server(proxy: LateEnd) -> Iterator[KafkaServer]:
    """A Kafka of the test's own that ``proxy`` stands before; skipped where none can be run."""
    try:
        server = KafkaServer(proxy.port)
    except KafkaUnavailable as lack:
        pytest.skip(f"needs a Kafka of its own: {lack}")
    with server:
        proxy.upstream = server.upstream
        yield server


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", [case for case in CASES if case.gate], ids=lambda case: case.bug)
def test_a_planted_bug_is_found(case: Case, make_run: MakeRun, report: Report) -> None:
    verdict = case.scenario(case.make(make_run), [case.bug])
    report(verdict)
    assert any(failure.startswith(case.shows) for failure in verdict.failures), verdict.line


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.gate], ids=lambda case: case.scenario.__name__
)
def test_without_the_bug_nothing_is_found(case: Case, make_run: MakeRun, report: Report) -> None:
    verdict = case.scenario(case.make(make_run), [])
    report(verdict)
    assert not verdict.failures


@pytest.mark.usefixtures("kafka_server")
@pytest.mark.timeout(180)
def test_a_late_commit_is_found_where_no_producer_is_renewed(
    proxy: LateEnd, make_run: MakeRun, report: Report
) -> None:
    case = late_commit_case(proxy, reset=True)
    verdict = case.scenario(case.make(make_run), [case.bug])
    report(verdict)
    assert any(failure.startswith(case.shows) for failure in verdict.failures), verdict.line


@pytest.mark.usefixtures("kafka_server")
@pytest.mark.timeout(180)
def test_a_late_commit_does_no_harm(proxy: LateEnd, make_run: MakeRun, report: Report) -> None:
    case = late_commit_case(proxy, reset=True)
    verdict = case.scenario(case.make(make_run), [])
    report(verdict)
    assert not verdict.failures
