from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stream_scorer.kafka.offsets import OffsetTracker


def tracker(*started: int, partition: int = 0) -> OffsetTracker:
    fresh = OffsetTracker()
    for offset in started:
        fresh.started(partition, offset)
    return fresh


def test_nothing_is_committable_before_anything_is_finished() -> None:
    assert OffsetTracker().committable() == {}
    assert tracker(5, 6).committable() == {}


def test_the_offset_to_commit_is_the_next_to_read() -> None:
    offsets = tracker(5, 6)
    offsets.finished(0, 5)
    assert offsets.committable() == {0: 6}


def test_what_finishes_early_waits_for_those_before_it() -> None:
    offsets = tracker(5, 6, 7, 8)
    for offset in (8, 6, 7):
        offsets.finished(0, offset)
        assert offsets.committable() == {}
    offsets.finished(0, 5)
    assert offsets.committable() == {0: 9}


def test_offsets_may_have_gaps() -> None:
    offsets = tracker(5, 9, 17)
    offsets.finished(0, 9)
    offsets.finished(0, 5)
    assert offsets.committable() == {0: 10}
    offsets.finished(0, 17)
    assert offsets.committable() == {0: 18}


def test_partitions_do_not_wait_for_each_other() -> None:
    offsets = tracker(5)
    offsets.started(1, 7)
    offsets.started(2, 9)
    offsets.finished(1, 7)
    offsets.finished(2, 9)
    assert offsets.committable() == {1: 8, 2: 10}
    assert offsets.committable([0, 2, 3]) == {2: 10}
    assert offsets.committable([]) == {}
    assert offsets.in_flight() == 1


def test_a_forgotten_partition_has_nothing_to_commit() -> None:
    offsets = tracker(5, 6)
    offsets.finished(0, 5)
    offsets.forget([0, 7])
    assert offsets.committable() == {}
    assert offsets.in_flight() == 0
    offsets.finished(0, 6)
    assert offsets.committable() == {}


def test_a_late_report_does_not_finish_what_is_read_again() -> None:
    """Of the partition's earlier time with us, before it was revoked and came back."""
    offsets = tracker(5, 6, 7)
    offsets.forget([0])
    offsets.started(0, 5)
    offsets.finished(0, 6)
    offsets.finished(0, 3)
    assert offsets.committable() == {}
    offsets.finished(0, 5)
    assert offsets.committable() == {0: 6}
    assert offsets._partitions[0].early == {6}, "what lies before is not kept"


def test_a_second_report_changes_nothing() -> None:
    offsets = tracker(5, 6, 7)
    for offset in (6, 6, 5, 5, 6):
        offsets.finished(0, offset)
    assert offsets.committable() == {0: 7}
    assert offsets.in_flight() == 1


@pytest.mark.parametrize("order", ["as started", "backwards"])
def test_no_memory_is_kept_of_what_is_finished(order: str) -> None:
    offsets = tracker(*range(1000))
    for offset in range(1000) if order == "as started" else reversed(range(1000)):
        offsets.finished(0, offset)
    assert offsets.committable() == {0: 1000}
    state = offsets._partitions[0]
    assert (len(state.in_flight), len(state.early)) == (0, 0)


class Interleavings(RuleBasedStateMachine):
    """Starts, finishes and revocations in any order, beside a model that keeps everything."""

    partitions = st.integers(0, 2)

    @initialize()
    def begin(self) -> None:
        self.tracker = OffsetTracker()
        self.started: dict[int, list[int]] = {}
        self.finished: dict[int, set[int]] = {}
        self.next: dict[int, int] = {}

    @rule(partition=partitions, gap=st.integers(1, 3))
    def start(self, partition: int, gap: int) -> None:
        offset = self.next.get(partition, 0) + gap
        self.next[partition] = offset
        self.started.setdefault(partition, []).append(offset)
        self.tracker.started(partition, offset)

    @precondition(lambda self: any(self.started.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        known = [(p, offset) for p, started in self.started.items() for offset in started]
        partition, offset = data.draw(st.sampled_from(known))
        self.finished.setdefault(partition, set()).add(offset)
        self.tracker.finished(partition, offset)

    @rule(partition=partitions, offset=st.integers(0, 30))
    def report_of_a_partition_that_is_not_ours(self, partition: int, offset: int) -> None:
        if partition not in self.started:
            self.tracker.finished(partition, offset)

    @rule(partition=partitions)
    def forget(self, partition: int) -> None:
        self.tracker.forget([partition])
        self.started.pop(partition, None)
        self.finished.pop(partition, None)

    def expected(self) -> dict[int, int]:
        found = {}
        for partition, started in self.started.items():
            finished = self.finished.get(partition, set())
            for offset in started:
                if offset not in finished:
                    break
                found[partition] = offset + 1
        return found

    @invariant()
    def committable_is_the_contiguous_prefix(self) -> None:
        assert self.tracker.committable() == self.expected()
        for partition in range(3):
            assert self.tracker.committable([partition]) == {
                p: offset for p, offset in self.expected().items() if p == partition
            }

    @invariant()
    def in_flight_is_what_may_not_be_passed(self) -> None:
        expected = self.expected()
        assert self.tracker.in_flight() == sum(
            offset >= expected.get(partition, 0)
            for partition, started in self.started.items()
            for offset in started
        )


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=50, stateful_step_count=30)


@given(st.data())
def test_nothing_undelivered_is_ever_passed(data: st.DataObject) -> None:
    """Also when reports of the partition's earlier times with us come in between.

    Then a report may stand for either time, but the answer it tells of was delivered.
    """
    offsets = OffsetTracker()
    delivered: set[int] = set()
    committed = 0
    for _ in range(data.draw(st.integers(1, 4), label="times")):
        offsets.forget([0])
        in_hand: list[int] = []
        following = committed
        for _ in range(data.draw(st.integers(0, 12), label="steps")):
            if data.draw(st.booleans(), label="start") or not following:
                offsets.started(0, following)
                in_hand.append(following)
                following += 1
            else:
                reported = data.draw(st.integers(0, following - 1), label="reported")
                delivered.add(reported)
                offsets.finished(0, reported)
            for position in offsets.committable().values():
                assert delivered.issuperset(o for o in in_hand if o < position)
                committed = max(committed, position)
