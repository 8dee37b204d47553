"""A steady load, and the times at which it is answered."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final, Self

from confluent_kafka import Consumer, KafkaException, TopicPartition

from benchmarks.answers import answer_of
from benchmarks.case import RunFailed
from benchmarks.scale.pauses import Seen
from benchmarks.topics import RequestProducer
from benchmarks.workload import Workload

_TICK: Final = 0.005
"""Seconds; how exactly times are known."""

_MOST: Final = 1_000


class Load(threading.Thread):
    """Sends requests at a steady rate, and reads what is committed of their answers.

    One thread does both, so that a request's time and its answer's are of one clock, the monotonic
    one. Its partition is its number modulo their count; its answer's is the same.

    Args:
        bootstrap: the broker.
        requests: the topic to send to.
        results: the topic to read.
        partitions: of either.
        workload: what is asked.
        rate: requests a second.

    Attributes:
        sent: when each request was sent, by its number.
        seen: answers as they came.
    """

    def __init__(
        self,
        bootstrap: str,
        requests: str,
        results: str,
        *,
        partitions: int,
        workload: Workload,
        rate: float,
    ) -> None:
        super().__init__(name="load", daemon=True)
        self.sent: list[float] = []
        self.seen: list[Seen] = []
        self._requests = requests
        self._partitions = partitions
        self._workload = workload
        self._rate = rate
        self._answered: set[int] = set()
        self._wrong = 0
        self._failure: BaseException | None = None
        self._sending = True
        self._ended = threading.Event()
        self._producer = RequestProducer(bootstrap)
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": results,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(results, n, 0) for n in range(partitions)])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self.join()

    @property
    def unanswered(self) -> int:
        """Requests that wait for their answer.

        Raises:
            RunFailed: the load itself failed.
        """
        if self._failure is not None:
            raise RunFailed(f"the load failed: {self._failure}")
        return len(self.sent) - len(self._answered)

    @property
    def doubled(self) -> int:
        """Answers beyond the first to a request."""
        return len(self.seen) - len(self._answered)

    def finish(self, timeout: float) -> int:
        """Send nothing more, and wait until all is answered; how many are not after ``timeout``.

        Raises:
            RunFailed: an answer was wrong.
        """
        self._sending = False
        deadline = time.monotonic() + timeout
        while self.unanswered and time.monotonic() < deadline:
            time.sleep(_TICK)
        # A second answer may come late.
        time.sleep(1.0)
        if self._wrong:
            raise RunFailed(f"{self._wrong} of {len(self.seen)} answers were wrong")
        return self.unanswered

    def run(self) -> None:
        try:
            began = time.monotonic()
            while not self._ended.is_set():
                if self._sending:
                    self._send_until(int((time.monotonic() - began) * self._rate))
                self._read()
        except BaseException as failure:  # noqa: BLE001 - shown by whoever waits for answers
            self._failure = failure
        finally:
            self._consumer.close()

    def _send_until(self, due: int) -> None:
        for number in range(len(self.sent), due):
            self.sent.append(time.monotonic())
            self._producer.send(self._requests, self._workload, number, self._partitions)

    def _read(self) -> None:
        messages = self._consumer.consume(_MOST, _TICK)
        now = time.monotonic()
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
            answer = answer_of(message)
            number = int(answer.correlation)
            self._wrong += not self._workload.right(number, answer.body, answer.headers)
            self.seen.append(Seen(number, message.partition() or 0, now))
            self._answered.add(number)
