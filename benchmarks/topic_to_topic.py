"""A case from topic to topic: how fast a contender works off requests that are there already."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from benchmarks.answers import read_answers, verify
from benchmarks.case import Context, RunFailed
from benchmarks.contender import Contender
from benchmarks.groups import Group
from benchmarks.job import Job
from benchmarks.measure import Measurement, Usage, usage
from benchmarks.process import LOOK_EVERY, START_TIMEOUT, ContenderProcess
from benchmarks.topics import Ends, RequestProducer, held_backlog, topic
from benchmarks.workload import Workload

_STALL_TIMEOUT: Final = 60.0
_QUIET: Final = 0.3
_QUICK_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Variant:
    """What a case's contenders are asked, in one of its forms.

    Attributes:
        name: as in the table; ``""`` where there is but one.
        workload: what is asked; made when it is needed.
        requests: how many.
        contenders: who takes turns.
        partitions: of the topics.
        quick: whether the quick form has it as well.
    """

    name: str
    workload: Callable[[], Workload]
    requests: int
    contenders: tuple[Contender, ...]
    partitions: int = 4
    quick: bool = True


@dataclass(frozen=True, slots=True)
class TopicToTopic:
    """A case: contenders that work off the same requests, one after another, round by round."""

    name: str
    variants: tuple[Variant, ...]

    def only(self, contenders: Collection[str]) -> TopicToTopic:
        """The case with these contenders alone, by name, and without variants that have none."""
        kept = (
            replace(
                variant,
                contenders=tuple(each for each in variant.contenders if each.name in contenders),
            )
            for variant in self.variants
        )
        return TopicToTopic(self.name, tuple(variant for variant in kept if variant.contenders))

    def run(self, context: Context, rounds: int, quick: bool) -> Iterator[Measurement]:
        """Measure every contender of every variant once a round."""
        workload_of = cache(lambda make: make())
        variants = [variant for variant in self.variants if variant.quick or not quick]
        with ExitStack() as backlogs:
            backlog_of = cache(
                lambda make, count, partitions: backlogs.enter_context(
                    _backlog(context, workload_of(make), count, partitions)
                )
            )

            def measure(variant: Variant, contender: Contender) -> _Result:
                requests = variant.requests * (_QUICK_SHARE if quick else 1)
                count = max(1, int(requests * contender.share))
                make = contender.workload or variant.workload
                run = _Run(context, contender, workload_of(make), count, variant.partitions)
                if contender.members:
                    return run.measure_held()
                if contender.live:
                    return run.measure_live()
                return run.measure(backlog_of(make, count, variant.partitions))

            # For nothing: whoever is first would find the broker and the files cold.
            measure(variants[0], variants[0].contenders[0])
            for number in range(rounds):
                for variant in variants:
                    for contender in variant.contenders:
                        result = measure(variant, contender)
                        yield Measurement(
                            self.name, contender.name, variant.name, number, *result, {}
                        )


@contextmanager
def _backlog(context: Context, workload: Workload, count: int, partitions: int) -> Iterator[str]:
    """A topic of requests, read by every contender from its start."""
    with topic(context.bootstrap, partitions) as requests:
        RequestProducer(context.bootstrap).produce(requests, workload, count, partitions)
        yield requests


_Result = tuple[int, float, float, float, float]
"""Answers, seconds, CPU seconds, the broker's CPU seconds, and peak size in MB."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One contender, once."""

    context: Context
    contender: Contender
    workload: Workload
    count: int
    partitions: int

    def measure(self, requests: str) -> _Result:
        """Let it work off a topic of requests."""
        with topic(self.context.bootstrap, self.partitions) as results:
            with self._started(requests, results) as process:
                spent = self._watch(process, results)
            return self._result(results, spent)

    def measure_live(self) -> _Result:
        """Ask it once it is ready, on a topic of its own."""
        bootstrap = self.context.bootstrap
        with (
            topic(bootstrap, self.partitions) as requests,
            topic(bootstrap, self.partitions) as results,
        ):
            with self._started(requests, results) as process:
                producer = RequestProducer(bootstrap)
                before = self._warm_up(process, producer, requests, results)
                start = self._spent(process)
                # The broker's clock is this machine's.
                began = int(time.time() * 1000)
                producer.produce(requests, self.workload, self.count, self.partitions)
                spent = self._watch(process, results, before, start)
            return self._result(results, spent, began)

    def measure_held(self) -> _Result:
        """Let it work off a topic of requests, once all its processes have their partitions."""
        bootstrap = self.context.bootstrap
        with (
            topic(bootstrap, self.partitions) as requests,
            topic(bootstrap, self.partitions) as results,
            held_backlog(
                bootstrap, requests, self.workload, self.count, self.partitions
            ) as release,
        ):
            with self._started(requests, results) as process:
                group = Group(bootstrap, results, self.partitions)
                group.wait_shared(self.contender.members, process.wait, START_TIMEOUT)
                release()
                spent = self._watch(process, results)
            return self._result(results, spent)

    @contextmanager
    def _started(self, requests: str, results: str) -> Iterator[ContenderProcess]:
        job = Job(self.context.bootstrap, requests, results, group=results, model="")
        folder = Path(tempfile.mkdtemp(dir=self.context.folder))
        process = ContenderProcess(self.contender.name, self.contender.command(job, folder), folder)
        try:
            yield process
        finally:
            process.stop()

    def _warm_up(
        self, process: ContenderProcess, producer: RequestProducer, requests: str, results: str
    ) -> int:
        """Ask until the first answer, and return how many there are of such."""
        process.wait_ready()
        ends = Ends(self.context.bootstrap, results, self.partitions)
        while not ends.total():
            producer.warm_up(requests, self.workload)
            process.wait(1.0)
        # Later ones may be answered later.
        process.wait(_QUIET)
        return ends.total()

    def _spent(self, process: ContenderProcess) -> _Spent:
        return _Spent(process.usage(), usage([self.context.broker_pid]))

    def _watch(
        self, process: ContenderProcess, results: str, before: int = 0, start: _Spent | None = None
    ) -> _Spent:
        """Wait until nothing more is answered; return what was used from the start on.

        Args:
            process: who answers.
            results: the topic it answers on.
            before: the records that were there before.
            start: what was used before the start; where not given, that is the first answer.
        """
        ends = Ends(self.context.bootstrap, results, self.partitions)
        written, changed = before, time.monotonic()
        while True:
            total = ends.total()
            now = time.monotonic()
            if total > written:
                written, changed = total, now
            if start is None and written > before:
                start = self._spent(process)
            # There may be a few more records than answers, since transactions leave marks: the
            # end is when all can be there and nothing more comes.
            if start and written - before >= self.count and now - changed >= _QUIET:
                return self._spent(process).since(start)
            if now - changed > (_STALL_TIMEOUT if written > before else START_TIMEOUT):
                raise RunFailed(
                    f"{self.contender.name} stands still at {written - before} of {self.count} "
                    f"answers\n{process.log}"
                )
            process.wait(LOOK_EVERY)

    def _result(self, results: str, spent: _Spent, began: int | None = None) -> _Result:
        answers = read_answers(self.context.bootstrap, results, self.partitions)
        try:
            verdict = verify(answers, self.count, self.workload.right, began)
        except RunFailed as error:
            raise RunFailed(f"{self.contender.name}: {error}") from None
        used = spent.contender
        return (
            *(verdict.answers, verdict.seconds),
            *(used.cpu_seconds, spent.broker.cpu_seconds, used.peak_mb),
        )


@dataclass(frozen=True, slots=True)
class _Spent:
    """What a contender and the broker have used."""

    contender: Usage
    broker: Usage

    def since(self, start: _Spent) -> _Spent:
        """The difference; peaks stay what they are."""
        return _Spent(_since(self.contender, start.contender), _since(self.broker, start.broker))


def _since(end: Usage, start: Usage) -> Usage:
    return Usage(end.cpu_seconds - start.cpu_seconds, end.peak_mb)
