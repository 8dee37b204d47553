"""What a worker counts, for Prometheus; written by the worker's threads, read by the server's.

Under a supervisor each process writes to files in ``PROMETHEUS_MULTIPROC_DIR``, and the
supervisor serves them all, told apart by the label ``slot``.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Iterable
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from stream_scorer.protocol import Answer, Status

MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"

Stage = Literal["queue", "decode", "predict", "encode", "publish"]
Event = Literal["assigned", "revoked", "lost"]

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """The metrics of one worker process; ``slot`` is a label of each."""

    def __init__(self, slot: int) -> None:
        self.registry = CollectorRegistry()
        label = str(slot)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"scorer_{name}", text, ["slot", *labels], registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(
                f"scorer_{name}",
                text,
                ["slot", *labels],
                registry=self.registry,
                # Of a slot's processes the one that runs has written last.
                multiprocess_mode="mostrecent",
            )

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                f"scorer_{name}", text, ["slot", *labels], buckets=buckets, registry=self.registry
            )

        self._slot = label
        requests = counter("requests_total", "Requests answered, by status.", "status")
        letters = counter("dead_letters_total", "Dead letters, by status.", "status")
        # Looked up once: a turn may be a single request.
        self._requests = {each: requests.labels(label, each.value) for each in Status}
        self._dead_letters = {each: letters.labels(label, each.value) for each in Status}
        stages = histogram(
            "stage_seconds",
            "Seconds a turn spent in a stage; in the queue: its oldest request.",
            _SECONDS,
            "stage",
        )
        self._stages = {each: stages.labels(label, each) for each in get_args(Stage)}
        self._rebalances = counter(
            "rebalances_total", "Partitions assigned, revoked or lost, by event.", "event"
        )
        self._model = gauge("model_info", "1 for the model that is loaded.", "model")
        self.turn = histogram("turn_requests", "Requests in a turn.", _SIZES).labels(label)
        self.batches = histogram("batch_instances", "Instances in a predict.", _SIZES).labels(label)
        self.in_flight = gauge("in_flight", "Requests in hand, and records not delivered.").labels(
            label
        )
        self.lag = gauge("lag", "Requests behind the end of the owned partitions.").labels(label)
        self.paused = gauge("paused", "Partitions paused while a turn is scored.").labels(label)
        self.assigned = gauge("assigned", "Partitions owned.").labels(label)
        for each in (self.in_flight, self.lag, self.paused, self.assigned):
            # A process that died in this slot has left its own.
            each.set(0)
        self.commits = counter("commits_total", "Commits made.").labels(label)
        self.aborts = counter("aborts_total", "Transactions that were not committed.").labels(label)
        self.renewals = counter(
            "producer_renewals_total", "Transactional producers made anew."
        ).labels(label)

    def model(self, header: str) -> None:
        """Tell which model is loaded."""
        self._model.labels(self._slot, header).set(1)

    def rebalanced(self, event: Event) -> None:
        """Count a change of the assignment."""
        self._rebalances.labels(self._slot, event).inc()

    def stage(self, name: Stage, seconds: float) -> None:
        """Note how long a turn spent in a stage."""
        self._stages[name].observe(seconds)

    def batch(self, size: int) -> None:
        """Note the size of a batch that goes to ``predict``."""
        self.batches.observe(size)

    def answered(self, answers: Iterable[Answer]) -> None:
        """Count a turn's answers and dead letters."""
        statuses = Tally(answer.status for answer in answers)
        letters = Tally(answer.status for answer in answers if answer.is_dead_letter)
        for status, number in statuses.items():
            self._requests[status].inc(number)
        for status, number in letters.items():
            self._dead_letters[status].inc(number)


def all_slots() -> CollectorRegistry:
    """The metrics of every process that writes to ``PROMETHEUS_MULTIPROC_DIR``."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=os.environ[MULTIPROCESS])  # type: ignore[no-untyped-call]
    return registry
