"""One run: requests, workers, faults among them, and a verdict."""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import KafkaException

from tests.engine import environment_for
from tests.faults.fleet import Fleet
from tests.faults.stream import RequestStream
from tests.faults.verifier import AnswerReader, Cluster, Verdict, verify

MAX_TURN = 50
PREDICT_MS = 2.0

TURNS_IN_FLIGHT = 3
"""Turns of a worker whose answers may be published and not committed, at least once.

One is being published; the one before it is committed by a request that may not have been sent
yet; and a commit is not made more often than every ``COMMIT_INTERVAL``, which is a turn here.
"""

LOOKS = 10
"""How often in a row a group must be seen at rest."""

ANSWER_TIMEOUT = 90.0
BUSY_WITHIN = 1.5
MIN_BUSY = 0.8
NEXT_COMMIT_LIMIT = 5.0
"""Seconds from a loaded model; much less than what is left of a session of 12 by then, which a
successor without its name would wait for."""


class Run:
    """Requests that are sent while workers score them and faults happen.

    Args:
        bootstrap: the broker.
        names: the topics' names by their kind, all with ``partitions`` partitions.
        group: the workers' group.
        folder: where the workers' files go.
        delivery: ``worker.delivery``.
        requests: how many there are in all.
        partitions: of each topic.
        session_timeout: seconds until the broker gives up a silent worker.
        sections: further settings of the workers, by section.
    """

    def __init__(
        self,
        bootstrap: str,
        names: Mapping[str, str],
        group: str,
        folder: Path,
        delivery: str,
        *,
        requests: int,
        partitions: int = 6,
        session_timeout: float = 6.0,
        predict_ms: float = PREDICT_MS,
        kafka: Mapping[str, object] | None = None,
        worker: Mapping[str, object] | None = None,
    ) -> None:
        self.requests = requests
        self.bootstrap = bootstrap
        self.names = names
        self.delivery = delivery
        self.random = random.Random(group)
        milliseconds = int(session_timeout * 1000)
        environment = environment_for(
            bootstrap,
            names,
            worker={
                "group": group,
                "instance_id": group,
                "delivery": delivery,
                "max_turn": MAX_TURN,
                **(worker or {}),
            },
            kafka={
                "consumer": {
                    "session.timeout.ms": milliseconds,
                    "heartbeat.interval.ms": milliseconds // 6,
                },
                **(kafka or {}),
            },
        )
        self.fleet = Fleet(folder, environment, predict_ms)
        self.stream = RequestStream(bootstrap, names["requests"], partitions, requests)
        self.reader = AnswerReader(bootstrap, names["results"], "read_committed")
        self.cluster = Cluster(bootstrap, group)
        self._keep = 0
        self.faults: list[bool] = []
        """For each fault, whether it hit a worker that was at work."""
        self.deaths = 0
        """Workers that left published answers uncommitted, at most."""
        self.in_producers = 0
        """Answers that waited in producers when something happened, at most."""
        self.ended_alone = 0
        """Workers that ended by themselves and were started again, as a supervisor would."""

    def pace(self, fault: int, of: int) -> None:
        """Let the requests come as far as fault number ``fault`` of ``of`` wants them.

        What is left is shared out among the faults that are left: however fast the workers are,
        they do not finish before the last one. Waits until half a share is answered, with one and
        a half to be done.
        """
        done = len(self.reader.numbers)
        share = (self.requests - done) // (of - fault + 2)
        self._keep = share
        self.stream.release(done + 2 * share)
        self.answered(done + share // 2)

    def trickle(self, count: int) -> None:
        """Let some more requests come while a fault is waited for.

        Not all of them: what is kept for later faults is touched when all others are answered.
        """
        if len(self.reader.numbers) >= self.requests - self._keep:
            self._keep = max(0, self._keep - count)
        self.stream.release(min(self.stream.released + count, self.requests - self._keep))

    def at_rest(self, timeout: float = ANSWER_TIMEOUT) -> None:
        """Wait until the group has rebalanced, with every worker there is in it.

        Commits wait for the end of a rebalance, so that a worker which dies in one leaves more
        behind than ``TURNS_IN_FLIGHT``. A cooperative rebalance is two, one right after the other.
        """
        looks = 0

        def settled() -> bool:
            nonlocal looks
            self.ended_alone += self.fleet.revive()
            complete = self.cluster.members() == len(self.fleet.slots)
            looks = looks + 1 if complete else 0
            return looks > LOOKS

        self.reader.wait_for("group at rest", settled, timeout)

    def answered(self, count: int, timeout: float = ANSWER_TIMEOUT) -> None:
        """Wait until ``count`` requests have an answer.

        A worker that ends by itself meanwhile is started again, and counted.
        """

        def enough() -> bool:
            self.ended_alone += self.fleet.revive()
            return len(self.reader.numbers) >= count

        try:
            self.reader.wait_for(f"answer number {count}", enough, timeout)
        except AssertionError as late:
            logs = "".join(f"\n{w.name}: {w.log[-1500:]}" for w in self.fleet.slots.values())
            raise AssertionError(f"{late}{logs}") from None

    def busy_slots(self) -> list[int]:
        """Slots whose workers were heard of lately."""
        now = time.time()
        return [
            slot
            for slot, worker in self.fleet.slots.items()
            if worker.running and now - self.reader.last_seen.get(worker.name, 0.0) < BUSY_WITHIN
        ]

    def victim(self, among: list[int] | None = None) -> int:
        """A slot to hit, at work if one can be found in time; counts the fault."""
        slots = among or list(self.fleet.slots)
        deadline = time.monotonic() + 10
        busy: list[int] = []
        while not busy and time.monotonic() < deadline:
            busy = [slot for slot in self.busy_slots() if slot in slots]
            time.sleep(0.02)
        self.hit(busy=bool(busy))
        return self.random.choice(busy or slots)

    def hit(self, *, busy: bool) -> None:
        """Count a fault; one that comes when there is nothing left to do is none."""
        unanswered = len(self.reader.numbers) < self.requests
        self.faults.append(busy and unanswered)

    def kill(self, slot: int) -> None:
        """End a worker with SIGKILL, and start its successor at once."""
        self.deaths += 1
        self.fleet.kill(slot)
        self.fleet.start(slot)

    def freeze(self, slot: int, seconds: float) -> None:
        """Stop a worker for a while; when it wakes, its partitions are another's."""
        self.deaths += 1
        worker = self.fleet.slots[slot]
        worker.popen.send_signal(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            worker.popen.send_signal(signal.SIGCONT)

    def everyone_hit(self, fault: Callable[[], None]) -> None:
        """Have a fault that hits every worker at once, and start those that it ended."""
        self.hit(busy=len(self.busy_slots()) > 0)
        self.deaths += len(self.fleet.slots)
        # Workers score what they have fetched while the broker is away, and its answers wait in
        # their producers; if they lose their partitions meanwhile, all of it is scored again.
        self.in_producers += self.stream.released - len(self.reader.numbers)
        fault()
        self.ended_alone += self.fleet.revive()

    def next_commits(self) -> list[float]:
        """For each successor: seconds from its model being loaded to its first answer's commit."""
        return [
            self.reader.first_seen[worker.name] - worker.loaded_at
            for worker in self.fleet.started
            if worker.successor
            and worker.name in self.reader.first_seen
            and worker.loaded_at is not None
        ]

    def settle(self, timeout: float = ANSWER_TIMEOUT) -> None:
        """Send the rest and wait until the group has committed all of it, or fails to.

        A worker that ends by itself meanwhile is started again.
        """
        self.stream.finish(timeout)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.ended_alone += self.fleet.revive()
            try:
                if self.cluster.behind(self.names["requests"]) == 0:
                    return
            except KafkaException:
                pass
            time.sleep(0.2)

    def verdict(self, timeout: float = ANSWER_TIMEOUT, *, stop: bool = True) -> Verdict:
        """Finish the run, end the workers and judge; says nothing of the run's validity."""
        self.settle(timeout)
        if stop:
            self.fleet.stop()
        else:
            self.fleet.end()
        verdict = Verdict(self.delivery, self.requests)
        if self.delivery == "at_least_once":
            verdict.duplicates_allowed = (
                self.deaths * TURNS_IN_FLIGHT * MAX_TURN + self.in_producers
            )
        verify(self.bootstrap, self.cluster, self.names, self.reader, verdict, self.stream.places)
        if self.ended_alone:
            verdict.notes.append(f"{self.ended_alone} workers ended by themselves")
        if self.faults:
            verdict.notes.append(f"{len(self.faults)} faults, {sum(self.faults)} hit busy workers")
        if waits := self.next_commits():
            verdict.notes.append(
                f"next commit after {statistics.median(waits):.1f} s, at most {max(waits):.1f} s"
            )
        return verdict

    def invalid(self, planned: int) -> list[str]:
        """Why this run shows nothing, if so: its faults came too late or hit nobody."""
        reasons = []
        if len(self.faults) != planned:
            reasons.append(f"{len(self.faults)} of {planned} faults happened")
        elif planned and not self.faults[-1] and len(self.reader.numbers) >= self.requests:
            reasons.append("the workers had finished before the last fault")
        if sum(self.faults) < MIN_BUSY * planned:
            reasons.append(f"only {sum(self.faults)} of {planned} faults hit a busy worker")
        return reasons

    def close(self) -> None:
        self.stream.end()
        self.fleet.end()
        self.reader.end()
        self.cluster.close()


@contextmanager
def running(run: Run, slots: int) -> Iterator[Run]:
    """The run with ``slots`` workers at work; nothing of it is left afterwards."""
    try:
        run.reader.start()
        run.stream.start()
        run.fleet.wait_ready(*[run.fleet.start(slot) for slot in range(slots)])
        yield run
    finally:
        run.close()
