"""Workers under a steady load, each a process that can come and go by itself."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import orjson

from benchmarks.case import Context, RunFailed
from benchmarks.contender import product
from benchmarks.groups import LOOK_EVERY, Group
from benchmarks.job import Job
from benchmarks.process import START_TIMEOUT, ContenderProcess
from benchmarks.scale.load import Load
from benchmarks.topics import topic
from benchmarks.workload import Workload

PARTITIONS: Final = 12
RATE: Final = 2_000.0
"""Requests a second, of the about 49,000 that one worker can answer."""

_CONF: Final = "samples/sklearn_wine/onnx/conf.yaml"
_SETTLE_TIMEOUT: Final = 120.0
_CALM_SECONDS: Final = 0.5
"""There are no more requests unanswered than are sent in this time."""


@dataclass(frozen=True, slots=True)
class Mode:
    """How the workers deliver, and how their group is led.

    Attributes:
        delivery: ``worker.delivery``.
        protocol: ``group.protocol``: ``classic``, or ``consumer``, which is KIP-848's.
        heartbeat_ms: ``heartbeat.interval.ms``, where it is not the program's own.
    """

    delivery: str
    protocol: str
    heartbeat_ms: int | None = None

    @property
    def group(self) -> str:
        """How the group is led, in words."""
        heartbeat = f", heartbeat {self.heartbeat_ms} ms" if self.heartbeat_ms else ""
        return self.protocol + heartbeat

    @property
    def name(self) -> str:
        """As one word for the command line."""
        heartbeat = f"-{self.heartbeat_ms}ms" if self.heartbeat_ms else ""
        return f"{self.delivery}-{self.protocol}{heartbeat}"

    @property
    def lingers(self) -> bool:
        """Whether the broker keeps the partitions of one that leaves until its session ends.

        So it does for a member with a lasting name in the newer protocol.
        """
        return (self.delivery, self.protocol) == ("exactly_once", "consumer")


MODES: Final = (
    Mode("at_least_once", "classic"),
    Mode("at_least_once", "classic", heartbeat_ms=2000),
    Mode("at_least_once", "consumer"),
    Mode("exactly_once", "classic"),
    Mode("exactly_once", "consumer"),
)


@dataclass(slots=True)
class Crew:
    """The workers of one group.

    Attributes:
        load: what they answer.
        group: theirs.
        workers: those that run, the latest last.
    """

    context: Context
    mode: Mode
    job: Job
    load: Load
    group: Group
    workers: list[ContenderProcess] = field(default_factory=list)
    _started: int = 0

    def add(self, processes: int = 1) -> ContenderProcess:
        """Start a worker, or so many under a supervisor, and do not wait for it."""
        name = f"w{self._started}"
        self._started += 1
        contender = product(
            _CONF, exactly_once=self.mode.delivery == "exactly_once", processes=processes
        )
        folder = Path(tempfile.mkdtemp(dir=self.context.folder))
        command = contender.command(self.job, folder)
        consumer: dict[str, str | int] = {"group.protocol": self.mode.protocol}
        if self.mode.heartbeat_ms is not None:
            consumer["heartbeat.interval.ms"] = self.mode.heartbeat_ms
        kafka = {"bootstrap.servers": self.job.bootstrap, "consumer": consumer}
        environment = {
            **command.environment,
            "SCORER_KAFKA": orjson.dumps(kafka).decode(),
            "SCORER_WORKER_INSTANCE_ID": name,
        }
        worker = ContenderProcess(name, replace(command, environment=environment), folder)
        self.workers.append(worker)
        return worker

    def wait(self, seconds: float) -> None:
        """Let them work.

        Raises:
            RunFailed: one has ended.
        """
        time.sleep(seconds)
        for worker in self.workers:
            worker.wait(0)

    def settle(self, members: int, timeout: float = _SETTLE_TIMEOUT) -> None:
        """Wait until so many share the partitions, and none of these has a backlog.

        Raises:
            RunFailed: one has ended, or it takes too long.
        """
        self.group.wait_shared(members, self.wait, timeout)
        deadline = time.monotonic() + timeout
        while self.load.unanswered > _CALM_SECONDS * RATE:
            if time.monotonic() > deadline:
                raise RunFailed(f"{self.load.unanswered} requests wait after {timeout:.0f} s")
            self.wait(LOOK_EVERY)


@contextmanager
def crew(
    context: Context, mode: Mode, workload: Workload, workers: int, *, supervised: bool = False
) -> Iterator[Crew]:
    """Workers that share the partitions and answer a steady load.

    Args:
        context: what to run on.
        mode: theirs.
        workload: what is asked.
        workers: how many.
        supervised: whether under a supervisor, or else each for itself.
    """
    bootstrap = context.bootstrap
    with topic(bootstrap, PARTITIONS) as requests, topic(bootstrap, PARTITIONS) as results:
        job = Job(bootstrap, requests, results, group=f"group-{results}", model="")
        load = Load(
            bootstrap, requests, results, partitions=PARTITIONS, workload=workload, rate=RATE
        )
        made = Crew(context, mode, job, load, Group(bootstrap, job.group, PARTITIONS))
        try:
            for _ in range(1 if supervised else workers):
                made.add(workers if supervised else 1)
            made.group.wait_shared(workers, made.wait, START_TIMEOUT)
            with load:
                made.wait(_CALM_SECONDS)
                made.settle(workers)
                yield made
        finally:
            for worker in made.workers:
                worker.stop()
