"""Short runs in which one thing happens at one place, every time: also for planted bugs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaError

from tests.faults.late_end import LateEnd
from tests.faults.run import Run, running
from tests.faults.verifier import Verdict

Planted = Sequence[str]
Scenario = Callable[[Run, Planted], Verdict]

SETTLE: Final = 25.0
"""Seconds that a short run gets until all is committed, or never will be."""

LATE: Final = 40.0
"""Seconds that it takes at most until a worker has lost its patience with a commit."""

WIDE_TURN: Final = 40

_ASSIGNED: Final = re.compile(r"assigned partitions \[\d")


def an_aborted_transaction(run: Run, planted: Planted) -> Verdict:
    """The third transaction fails before its offsets are sent; the worker goes on."""
    with running(run, slots=0):
        run.stream.release(run.requests)
        run.fleet.start(0, planted=["induced_abort", *planted])
        return run.verdict(SETTLE, stop=False)


def killed_before_the_commit(run: Run, planted: Planted) -> Verdict:
    """The worker dies once its offsets are sent, before its transaction is committed."""
    return _killed(run, planted, "after_send_offsets:kill:3")


def killed_after_a_commit(run: Run, planted: Planted) -> Verdict:
    """The worker dies after a commit, with answers that are not sent yet."""
    run.in_producers = run.requests  # the case has them linger there
    return _killed(run, planted, "after_commit:kill:2")


def killed_between_halves(run: Run, planted: Planted) -> Verdict:
    """Turns are delivered in halves, and the worker dies after the first of them."""
    return _killed(run, ["in_halves", *planted], "after_commit:kill:1")


def _killed(run: Run, planted: Planted, failpoint: str) -> Verdict:
    with running(run, slots=0):
        run.stream.release(run.requests)
        run.deaths += 1
        run.fleet.wait_killed(run.fleet.start(0, planted=planted, failpoint=failpoint))
        run.fleet.start(0)
        return run.verdict(SETTLE, stop=False)


def a_late_commit(run: Run, planted: Planted, proxy: LateEnd, *, reset: bool) -> Verdict:
    """The third commit arrives once more in the fourth transaction, in which the worker dies.

    Args:
        run: whose workers reach the broker through ``proxy``.
        planted: the bugs to run with.
        proxy: holds that commit back.
        reset: whether the worker learns that from a connection that breaks, or by its patience.
    """
    with running(run, slots=0):
        proxy.hold_back(3, reset=reset)
        run.stream.release(run.requests)
        # It has to stay in that transaction until the commit was there; it is not let to wake.
        run.fleet.start(0, planted=planted, failpoint=f"after_produce:sleep={2 * LATE:.0f}:4")
        run.reader.wait_for("late commit", lambda: proxy.answer is not None, LATE)
        run.kill(0)
        verdict = run.verdict(SETTLE, stop=False)
    verdict.notes.append(f"late commit: {KafkaError(proxy.answer or 0).name()}")
    return verdict


def moved_while_scoring(run: Run, planted: Planted) -> Verdict:
    """Half of a turn's partitions go to a second worker, which answers them, in a slow predict."""
    with running(run, slots=0):
        hold = _slow_turn(run, planted)
        run.fleet.wait_ready(run.fleet.start(1))
        run.answered(1 + WIDE_TURN // 2)
        hold.unlink()
        return run.verdict(SETTLE, stop=False)


def gone_and_back_while_scoring(run: Run, planted: Planted) -> Verdict:
    """They come back in the same slow predict, and then more requests come to all of them."""
    with running(run, slots=0):
        hold = _slow_turn(run, planted)
        slow = run.fleet.slots[0]
        run.fleet.wait_ready(run.fleet.start(1))
        run.answered(1 + WIDE_TURN // 2)
        seen = len(_ASSIGNED.findall(slow.log))
        run.fleet.stop(1)
        del run.fleet.slots[1]
        run.reader.wait_for(
            "partitions back", lambda: len(_ASSIGNED.findall(slow.log)) > seen, SETTLE
        )
        hold.unlink()
        return run.verdict(SETTLE)


def _slow_turn(run: Run, planted: Planted) -> Path:
    """Start a worker whose second turn is one of ``WIDE_TURN``, from every partition.

    It sleeps after its first commit until they all lie in its fetch queue.

    Returns:
        The file that holds its prediction while it is there.
    """
    hold = run.fleet.folder / "hold"
    slow = run.fleet.start(0, planted=planted, failpoint="after_commit:sleep=3:1", hold=hold)
    run.fleet.wait_ready(slow)
    run.stream.release(1)
    run.answered(1)
    slow.unmark("predicting")
    hold.touch()
    run.stream.release(1 + WIDE_TURN)
    run.reader.wait_for("slow turn", lambda: slow.marked("predicting"), SETTLE)
    return hold
