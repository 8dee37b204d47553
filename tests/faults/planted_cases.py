"""Which planted bug shows in which scenario, and as what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from tests.faults import scenarios
from tests.faults.late_end import LateEnd
from tests.faults.run import Run
from tests.faults.scenarios import WIDE_TURN, Scenario


@dataclass(frozen=True, slots=True)
class Case:
    """``bug`` breaks ``scenario`` in the way that ``shows`` names; ``gate``: in every test run."""

    bug: str
    scenario: Scenario
    shows: str
    delivery: str = "exactly_once"
    requests: int = 400
    gate: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, make_run: Callable[..., Run]) -> Run:
        return make_run(
            self.delivery, requests=self.requests, partitions=4, session_timeout=2.0, **self.options
        )


CASES: Final = (
    Case("no_rewind", scenarios.an_aborted_transaction, "lost", gate=True),
    Case("offsets_outside", scenarios.killed_before_the_commit, "lost", gate=True),
    Case(
        "no_ownership_check",
        scenarios.moved_while_scoring,
        "duplicated",
        requests=1 + WIDE_TURN,
        gate=True,
    ),
    Case(
        "early_acknowledgement",
        scenarios.killed_after_a_commit,
        "lost",
        delivery="at_least_once",
        requests=1_000,
        gate=True,
        # The answers of the first turns lie in the producer's queue while offsets are committed.
        options={"kafka": {"producer": {"linger.ms": 1_000}}},
    ),
    Case("client_position", scenarios.killed_between_halves, "lost"),
    Case("stale_metadata", scenarios.moved_while_scoring, "lost", requests=1 + WIDE_TURN),
    Case("offset_of_the_last", scenarios.killed_before_the_commit, "duplicated"),
    Case("answers_outside", scenarios.killed_before_the_commit, "duplicated"),
    Case("out_of_turn", scenarios.killed_before_the_commit, "out of order"),
    Case(
        "next_ones_answer",
        scenarios.killed_after_a_commit,
        "wrong",
        delivery="at_least_once",
        requests=1_000,
    ),
)


def late_commit_case(proxy: LateEnd, *, reset: bool) -> Case:
    """The case of a producer that is not made anew; its workers go through ``proxy``."""
    return Case(
        "no_renewal",
        partial(scenarios.a_late_commit, proxy=proxy, reset=reset),
        "duplicated",
        options={"kafka": {"bootstrap.servers": proxy.bootstrap}},
    )
