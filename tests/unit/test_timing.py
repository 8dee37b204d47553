"""Timings of batches, on a clock that only the plugin moves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stream_scorer import plugins, scorer, timing
from stream_scorer.protocol import Request
from stream_scorer.scorer import Scorer
from stream_scorer.timing import Stages, Timing, batch_sizes, knee, measure
from tests.fakes import request


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(plugins.Plugin[None, bytes, bytes]):
    """Takes so many seconds to decode and encode a request, and to predict a batch."""

    content_types = ("text/plain",)

    def __init__(self, clock: Clock, *, batch: float, each: float = 0.0) -> None:
        self.clock = clock
        self.seconds = batch
        self.each = each
        self.batches: list[int] = []
        self.most = 1_000_000

    def decode(self, payload: bytes, content_type: str) -> bytes:
        self.clock.now += self.each
        return payload

    def predict(self, model: None, instances: Sequence[bytes]) -> Sequence[bytes]:
        self.batches.append(len(instances))
        self.clock.now += self.seconds
        if max(self.batches) > self.most:
            raise MemoryError
        return instances

    def encode(self, prediction: bytes, accept: str | None) -> tuple[bytes, str]:
        self.clock.now += self.each / 2
        return prediction, "text/plain"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    monkeypatch.setattr(scorer, "perf_counter", clock)
    return clock


SENT: Request = request(payload=b"x", content_type="text/plain")


def timed(plugin: Slow, sizes: Sequence[int]) -> list[Timing]:
    stages = Stages()
    scorer = Scorer(
        plugin, None, payload_bytes=10, result_bytes=10, max_batch_size=512, observer=stages
    )
    return list(measure(scorer, stages, SENT, sizes))


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (100, [1, 2, 4, 8, 16, 32, 64, 100]),
    ],
)
def test_sizes_double_up_to_the_largest(largest: int, sizes: list[int]) -> None:
    assert batch_sizes(largest) == sizes


def test_each_stage_of_a_batch_is_timed(clock: Clock) -> None:
    found = timed(Slow(clock, batch=0.008, each=0.002), [1, 4])
    assert [each.batch for each in found] == [1, 4]
    assert [each.decode for each in found] == pytest.approx([0.002, 0.008])
    assert [each.predict for each in found] == pytest.approx([0.008, 0.008])
    assert [each.encode for each in found] == pytest.approx([0.001, 0.004])
    assert [each.total for each in found] == pytest.approx([0.011, 0.020])
    assert [each.rate for each in found] == pytest.approx([1 / 0.011, 200])


def test_fast_batches_are_timed_often_and_slow_ones_thrice_after_the_first(clock: Clock) -> None:
    fast, slow = Slow(clock, batch=0.01), Slow(clock, batch=0.5)
    timed(fast, [1])
    timed(slow, [1])
    assert len(fast.batches) == pytest.approx(30, abs=1)
    assert len(slow.batches) == 4


def test_what_is_done_once_for_a_size_is_not_counted(clock: Clock) -> None:
    class Tracing(Slow):
        def predict(self, model: None, instances: Sequence[bytes]) -> Sequence[bytes]:
            self.clock.now += 0.0 if len(instances) in self.batches else 1.0
            return super().predict(model, instances)

    # So slow that there is time for one more call only.
    (found,) = timed(Tracing(clock, batch=9), [1, 2])
    assert found.total == pytest.approx(9)


def test_it_ends_before_it_takes_too_long(clock: Clock) -> None:
    plugin = Slow(clock, batch=0.0, each=0.1)
    found = timed(plugin, batch_sizes(512))
    assert [each.batch for each in found] == [1, 2, 4]
    assert clock.now < timing.BUDGET + 2


def test_the_smallest_batch_is_timed_however_long_it_takes(clock: Clock) -> None:
    plugin = Slow(clock, batch=60)
    assert [each.batch for each in timed(plugin, [1, 2])] == [1]
    assert plugin.batches == [1, 1]


def test_batches_that_fail_are_not_timed(clock: Clock) -> None:
    plugin = Slow(clock, batch=0.1)
    plugin.most = 2
    assert [each.batch for each in timed(plugin, [1, 2, 4, 8])] == [1, 2]
    plugin.most = 0
    assert timed(plugin, [1]) == []


def of(batch: int, total: float) -> Timing:
    return Timing(batch, 0, total, 0, total)


@pytest.mark.parametrize(
    ("totals", "chosen"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 4),
        ({1: 1.0, 2: 1.05, 4: 2.0}, 2),
        ({1: 1.0, 2: 2.0, 4: 4.0}, 1),
        ({1: 1.0, 2: 1.1, 4: 10.0}, 2),
        ({1: 1.0, 2: 1.9, 4: 3.6}, 1),
    ],
)
def test_the_smallest_batch_with_most_of_the_rate_is_enough(
    totals: dict[int, float], chosen: int
) -> None:
    assert knee([of(batch, total) for batch, total in totals.items()]).batch == chosen
