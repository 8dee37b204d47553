"""Request/reply with more and more callers: floor, product, ``mlflow models serve``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from benchmarks.measure import Measurement, percentiles, usage
from benchmarks.reply import contenders
from benchmarks.reply.contenders import Running
from benchmarks.reply.context import Context
from benchmarks.reply.http_load import closed_loop

NAME: Final = "reply"

FLOOR: Final = "floor"

CALLERS: Final = (1, 16, 64, 256)
_QUICK_CALLERS: Final = (1, 64)
_ECHO_CALLERS: Final = 64

_WARM_UP: Final = 1.5
_WARM_BROKER: Final = 4.0
_SECONDS: Final = 5.0
_QUICK_SECONDS: Final = 1.5


@contextmanager
def _product(context: Context) -> Iterator[Running]:
    with contenders.product(context) as product:
        yield product.running


# What is best for one caller is not for many; the best of the floor is what counts, for each
# number of callers by itself.
_CONTENDERS: Final[Mapping[str, Callable[[Context], AbstractContextManager[Running]]]] = {
    "floor, linger 0": partial(contenders.floor, linger=0, flush=False),
    "product": _product,
    "floor, linger 1": partial(contenders.floor, linger=1, flush=False),
    "mlflow": contenders.mlflow,
    "floor, linger 5 and flush": partial(contenders.floor, linger=5, flush=True),
    "echo": contenders.echo,
}


def run(context: Context, rounds: int, quick: bool) -> Iterator[Measurement]:
    """Each contender with each number of callers, in turn, in every round.

    Raises:
        WrongAnswer: a contender answered wrongly.
        ContenderFailed: one did not start.
    """
    _warm_broker(context)
    for number in range(rounds):
        floors: list[Measurement] = []
        for contender, start in _CONTENDERS.items():
            with start(context) as running:
                callers = _QUICK_CALLERS if quick else CALLERS
                for count in (_ECHO_CALLERS,) if contender == "echo" else callers:
                    measured = measure(
                        context,
                        running,
                        case=NAME,
                        contender=contender,
                        variant=f"{count} caller{'s' if count > 1 else ''}",
                        number=number,
                        callers=count,
                        seconds=_QUICK_SECONDS if quick else _SECONDS,
                    )
                    if contender.startswith(FLOOR):
                        floors.append(measured)
                    yield measured
        yield from best(floors)


def best(floors: Iterable[Measurement]) -> list[Measurement]:
    """The floor's best setting for each number of callers, which is what others are held against.

    Args:
        floors: of one round, with every setting.
    """
    found: dict[str, Measurement] = {}
    for each in floors:
        if each.variant not in found or each.rate > found[each.variant].rate:
            found[each.variant] = replace(each, contender=FLOOR)
    return [*found.values()]


def _warm_broker(context: Context) -> None:
    # Its Java is slow at first, which would be counted against whoever comes first.
    with contenders.floor(context, linger=1, flush=False) as running:
        load = partial(measure, context, running, case=NAME, contender="", variant="", number=0)
        load(callers=_ECHO_CALLERS, seconds=_WARM_BROKER)


def measure(
    context: Context,
    running: Running,
    *,
    case: str,
    contender: str,
    variant: str,
    number: int,
    callers: int,
    seconds: float,
) -> Measurement:
    """Warm a contender up with so many callers, then count for ``seconds``.

    Raises:
        WrongAnswer: it answered wrongly.
    """

    async def load() -> Measurement:
        async with closed_loop(running.port, running.exchanges, callers) as loop:
            await asyncio.sleep(_WARM_UP)
            before, broker_before = usage(running.pids), usage([context.broker_pid])
            began = time.perf_counter()
            loop.counting = True
            await asyncio.sleep(seconds)
            loop.counting = False
            took = time.perf_counter() - began
            after, broker_after = usage(running.pids), usage([context.broker_pid])
        return Measurement(
            case=case,
            contender=contender,
            variant=variant,
            round=number,
            answers=len(loop.latencies_ms),
            seconds=took,
            cpu_seconds=after.cpu_seconds - before.cpu_seconds,
            broker_cpu_seconds=broker_after.cpu_seconds - broker_before.cpu_seconds,
            peak_mb=after.peak_mb,
            latencies_ms=percentiles(loop.latencies_ms),
        )

    return asyncio.run(load())
