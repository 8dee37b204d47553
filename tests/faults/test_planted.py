"""The verifier itself: each planted bug must make it fail, where the product passes."""

from __future__ import annotations

import pytest

from tests.faults.conftest import MakeRun, Report
from tests.faults.planted_cases import CASES, Case

pytestmark = pytest.mark.chaos


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
