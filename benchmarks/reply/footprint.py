"""What the product's processes weigh, how fast they are there, and whether they grow."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.measure import Figure
from benchmarks.reply import contenders
from benchmarks.reply.contenders import Process
from benchmarks.reply.context import Context
from benchmarks.reply.http_load import closed_loop

_HELPS: Final = 5
_STARTS: Final = 3
_CALLERS: Final = 64
_SECONDS: Final = 10.0
"""Seconds of load after which a process is weighed."""

_GROWTH_SECONDS: Final = 600.0
_QUICK_GROWTH_SECONDS: Final = 30.0
_SAMPLE_EVERY: Final = 0.5
NAME: Final = "footprint"
"""What this is called on the command line."""

_WARM_UP: Final = 0.2
"""The part of the load that memory may take to fill caches and pools, which is no growth."""


def footprint(context: Context, quick: bool) -> Iterator[Figure]:
    """Weigh the product: a facade process and an ONNX worker under 64 callers.

    Raises:
        ContenderFailed: the product did not start.
        WrongAnswer: it answered wrongly.
    """
    yield Figure("stream-scorer --help", min(_help() for _ in range(_HELPS)), "s", 0.3)
    starts = [_seconds_until_ready(context) for _ in range(0 if quick else _STARTS - 1)]
    with contenders.product(context) as product:
        starts.append(product.seconds_until_worker_ready)
        yield Figure("ONNX worker ready", min(starts), "s", 3.0)
        facade = _only_child(product.facade)
        sampled = {
            "facade process": facade,
            "ONNX worker": product.worker.pid,
        }
        seconds = _QUICK_GROWTH_SECONDS if quick else _GROWTH_SECONDS
        figures, samples = asyncio.run(_load(product.running, sampled, seconds))
        targets = {"facade process": 60.0, "ONNX worker": 250.0}
        for name, (resident, peak) in figures.items():
            yield Figure(f"{name}, resident", resident, "MB", targets[name])
            yield Figure(f"{name}, peak resident", peak, "MB")
        arbiter, _ = _resident(product.facade.pid)
        yield Figure("facade's gunicorn arbiter, resident", arbiter, "MB")
        for name, points in samples.items():
            # A short load is all warm-up: its growth is shown, and held against no target.
            growth = slope_per_minute(points[int(len(points) * _WARM_UP) :])
            yield Figure(f"{name}, growth", growth, "MB/min", None if quick else 0.1)


async def _load(
    running: contenders.Running, pids: dict[str, int], seconds: float
) -> tuple[dict[str, tuple[float, float]], dict[str, list[tuple[float, float]]]]:
    """Load for ``seconds``: what each process weighed after ``_SECONDS``, and all along."""
    weighed: dict[str, tuple[float, float]] = {}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
    async with closed_loop(running.port, running.exchanges, _CALLERS):
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            for name, pid in pids.items():
                figures = _resident(pid)
                samples[name].append((now, figures[0]))
                if now <= _SECONDS:
                    weighed[name] = figures
            await asyncio.sleep(_SAMPLE_EVERY)
    return weighed, samples


def slope_per_minute(points: Sequence[tuple[float, float]]) -> float:
    """How much a value grows in a minute, by least squares.

    Args:
        points: times in seconds, and values.

    Raises:
        ValueError: no two points in time.
    """
    count = len(points)
    mean_time = sum(at for at, _ in points) / max(1, count)
    mean_value = sum(value for _, value in points) / max(1, count)
    spread = sum((at - mean_time) ** 2 for at, _ in points)
    if spread == 0:
        raise ValueError("a slope takes two points in time")
    return 60 * sum((at - mean_time) * (value - mean_value) for at, value in points) / spread


def _resident(pid: int) -> tuple[float, float]:
    """A process's resident size and its peak so far, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)

    def megabytes(name: str) -> float:
        return int(fields[name].split()[0]) * 1024 / 1e6

    return megabytes("VmRSS"), megabytes("VmHWM")


def _only_child(process: Process) -> int:
    """The process that serves: gunicorn's one child."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (child,) = map(int, listed.read_text(encoding="ascii").split())
    return child


def _help() -> float:
    return _timed(
        lambda: subprocess.run(
            [Path(sys.executable).with_name("stream-scorer"), "--help"],
            stdout=subprocess.DEVNULL,
            check=True,
        )
    )


def _seconds_until_ready(context: Context) -> float:
    with contenders.product(context) as product:
        return product.seconds_until_worker_ready


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
