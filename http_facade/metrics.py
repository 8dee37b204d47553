"""What the facade counts: once, for ``/api/status`` (this process) and ``/metrics`` (all of them).

With several gunicorn processes each writes to files of its own in ``PROMETHEUS_MULTIPROC_DIR``
(``gunicorn_conf.py`` sees to it), and whichever is asked for the metrics reads them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"

METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
"""Those of HTTP. A caller may send any word for one, and labels have to stay few."""

_OTHER: Final = "other"

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Count:
    """A counter that also knows what it has counted in this process."""

    def __init__(self, counter: Counter) -> None:
        self.inc = counter.inc
        self._counter = counter
        # A process that takes the place of another goes on in its file.
        self._before = self._total()

    def here(self) -> int:
        """What this process has counted."""
        return int(self._total() - self._before)

    def _total(self) -> float:
        (metric,) = self._counter.collect()
        return metric.samples[0].value


class Counts:
    """What became of the requests to Kafka, and what the replies were."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Count:
            return Count(Counter(f"scorer_facade_{name}_total", text, registry=registry))

        replies = Counter(
            "scorer_facade_replies_total",
            "Records read from the replies topic, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self.requests = counter("sent", "Requests handed to the Kafka client.")
        self.replies = Count(replies.labels("answered"))
        self.timeouts = counter("timeouts", "Requests without a reply in time.")
        self.delivery_failures = counter(
            "delivery_failures", "Requests that did not reach their topic."
        )
        self.lost = counter("lost", "Requests whose reply was on a part of the topic that is gone.")
        self.late = Count(replies.labels("late"))
        self.duplicate = Count(replies.labels("duplicate"))
        # Bears this process's name and answers no request of it.
        self.orphan = Count(replies.labels("orphan"))
        # Nobody waited for it: it is to be fetched from the topic.
        self.deferred = Count(replies.labels("deferred"))
        # Is for another process on the same partition.
        self.foreign = Count(replies.labels("foreign"))
        self.unreadable = Count(replies.labels("unreadable"))

    def here(self) -> dict[str, int]:
        """What this process has counted, by name."""
        return {name: count.here() for name, count in vars(self).items()}


class Metrics:
    """The metrics of one facade process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.counts = Counts(self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(
                f"scorer_facade_{name}", text, registry=self.registry, multiprocess_mode="livesum"
            )

        self.pending = gauge("pending", "Callers that wait for a reply.")
        self.ready = gauge("ready", "Processes that can take requests.")
        self._responses = Counter(
            "scorer_facade_requests_total",
            "HTTP requests, by path, method and status.",
            ["path", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "scorer_facade_request_seconds",
            "Seconds from an HTTP request's headers to the end of its response, by path.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._children: dict[
            tuple[str | None, str, int], tuple[Callable[[], None], Callable[[float], None]]
        ] = {}

    def responded(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count an HTTP request that has ended.

        Args:
            route: the template of its path; ``None`` where no route matches.
            method: its method, as sent.
            status: the status of its response.
            seconds: how long it took.
        """
        key = (route, method if method in METHODS else _OTHER, status)
        # PERF: looking up a child by its labels costs more than counting does.
        children = self._children.get(key)
        if children is None:
            path = route or _OTHER
            children = self._children[key] = (
                self._responses.labels(path, key[1], status).inc,
                self._seconds.labels(path).observe,
            )
        count, observe = children
        count()
        observe(seconds)

    def exposition(self) -> bytes:
        """The metrics of all processes, as Prometheus reads them."""
        registry = self.registry
        if MULTIPROCESS in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
