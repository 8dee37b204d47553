"""Twice as many requests as can be answered, with deadlines: what is still answered in time.

The model takes a millisecond a request and sleeps in it, so that the load, on the same cores, takes
nothing from it. The deadline is the facade's ``timeout``, which is the one that a request carries.

Each round gives four measurements, by ``variant``:

- ``capacity``: what callers that wait get answered;
- ``light load``: a probe at a fraction of the capacity, before the load;
- ``twice the capacity``: its answers are those that came in time;
- ``after the load``: the same probe from the moment at which the load ends. Its ``seconds`` are
  those until the p99 is normal again, its answers and latencies those of that time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Final

from benchmarks.measure import Figure, Measurement, Usage, percentiles, usage
from benchmarks.reply import contenders
from benchmarks.reply.callers import measure
from benchmarks.reply.contenders import Running
from benchmarks.reply.context import Context
from benchmarks.reply.http_load import Outcomes, open_loop

NAME: Final = "overload"

DEADLINE: Final = 1.0
"""Seconds a caller waits: less than as many requests take as the facade lets wait by default."""

CAPACITY: Final = "capacity"
LIGHT: Final = "light load"
TWICE: Final = "twice the capacity"
AFTER: Final = "after the load"

_CALLERS: Final = 256
"""Enough that the model never waits for the way of its answers back to the callers."""

_CAPACITY_SECONDS: Final = 5.0
_OVERLOAD_SECONDS: Final = 60.0
_QUICK_OVERLOAD_SECONDS: Final = 10.0

_PROBES: Final = 200.0
"""Requests a second of the light probe: about a quarter of what the model can do."""

_PROBE_SECONDS: Final = 4.0

_WINDOW: Final = 0.5
"""Seconds over which a p99 is taken: 100 probes, so that the slowest one alone decides nothing."""

_STEP: Final = 0.1
_NORMAL: Final = 2.0
"""Up to so many times the p99 under light load is normal."""


def run(context: Context, rounds: int, quick: bool) -> Iterator[Measurement]:
    """The product, with its default settings but for the timeout.

    Raises:
        WrongAnswer: an answer had a wrong value.
        ContenderFailed: the product did not start.
    """
    conf = contenders.millisecond_conf(context.folder)
    exchanges = contenders.number_exchanges("/api/predict")
    for number in range(rounds):
        # With the default timeout: while it warms up, callers may have to wait for long.
        with contenders.product(context, exchanges, conf) as product:
            capacity = measure(
                context,
                product.running,
                case=NAME,
                contender="product",
                variant=CAPACITY,
                number=number,
                callers=_CALLERS,
                seconds=_CAPACITY_SECONDS,
            )
        yield capacity
        with contenders.product(context, exchanges, conf, facade_timeout=str(DEADLINE)) as product:
            seconds = _QUICK_OVERLOAD_SECONDS if quick else _OVERLOAD_SECONDS
            load = _overload(context, product.running, capacity.rate, number, seconds)
            yield from asyncio.run(load)


async def _overload(
    context: Context, running: Running, capacity: float, number: int, seconds: float
) -> list[Measurement]:
    def made(
        variant: str, good: Iterable[tuple[float, float]], took: float, before: _Used
    ) -> Measurement:
        latencies = [latency for _, latency in good]
        used = _used(context, running)
        return Measurement(
            case=NAME,
            contender="product",
            variant=variant,
            round=number,
            answers=len(latencies),
            seconds=took,
            cpu_seconds=used[0].cpu_seconds - before[0].cpu_seconds,
            broker_cpu_seconds=used[1].cpu_seconds - before[1].cpu_seconds,
            peak_mb=used[0].peak_mb,
            latencies_ms=percentiles(latencies),
        )

    async def probe() -> Outcomes:
        return await open_loop(
            running.port,
            running.exchanges,
            rate=_PROBES,
            seconds=_PROBE_SECONDS,
            deadline=DEADLINE,
        )

    before = _used(context, running)
    normal = await probe()
    light = made(LIGHT, normal.good, _PROBE_SECONDS, before)

    before = _used(context, running)
    ended = asyncio.Event()
    load = asyncio.create_task(
        open_loop(
            running.port,
            running.exchanges,
            rate=2 * capacity,
            seconds=seconds,
            deadline=DEADLINE,
            ended=ended.set,
        )
    )
    ending = asyncio.create_task(ended.wait())
    await asyncio.wait((load, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    # Before the load's last answers are there: they are what the probe has to wait behind.
    after_began = _used(context, running)
    after = await probe()
    outcomes = await load
    twice = made(TWICE, outcomes.good, seconds, before)
    took = recovery(after.good, normal_ms=_NORMAL * light.latencies_ms.get(99, math.inf))
    until = took if took is not None else _PROBE_SECONDS
    return [
        light,
        twice,
        made(AFTER, [each for each in after.good if each[0] < until], until, after_began),
    ]


_Used = tuple[Usage, Usage]


def _used(context: Context, running: Running) -> _Used:
    return usage(running.pids), usage([context.broker_pid])


def recovery(
    probes: Sequence[tuple[float, float]], *, normal_ms: float, rate: float = _PROBES
) -> float | None:
    """Seconds until answers are as fast as normal: the end of the first stretch in which they are.

    Args:
        probes: of each one that was answered in time, when it was due (seconds) and its latency
            (ms), in any order.
        normal_ms: the p99 that is normal still.
        rate: how many were sent a second; those that were not answered are missed in the count.

    Returns:
        ``None`` where no stretch of ``_WINDOW`` seconds within the probe was normal.
    """
    end = max((due for due, _ in probes), default=0.0) + 1 / rate
    for step in range(round((end - _WINDOW) / _STEP) + 1):
        start = step * _STEP
        within = [latency for due, latency in probes if start <= due < start + _WINDOW]
        # What was not answered was slower than all that was.
        missing = round(_WINDOW * rate) - len(within)
        latencies = [*within, *[math.inf] * missing]
        if percentiles(latencies)[99] <= normal_ms:
            return start + _WINDOW
    return None


def figures(measurements: Sequence[Measurement]) -> list[Figure]:
    """What came of the overload, as medians over the rounds; none where it was not measured."""
    parts = goodput(measurements).values()
    back = [each.seconds for each in measurements if (each.case, each.variant) == (NAME, AFTER)]
    return [
        Figure(name, median(values), unit, target, more_is_better)
        for name, values, unit, target, more_is_better in (
            ("answers in time at twice the capacity", parts, "of the capacity", 0.9, True),
            ("as fast as before after the load's end", back, "s", 2.0, False),
        )
        if values
    ]


def goodput(measurements: Iterable[Measurement]) -> dict[int, float]:
    """By round: answers in time a second at twice the capacity, as a part of the capacity."""
    rates = {(each.variant, each.round): each.rate for each in measurements if each.case == NAME}
    return {
        number: rate / rates[CAPACITY, number]
        for (variant, number), rate in rates.items()
        if variant == TWICE
    }
