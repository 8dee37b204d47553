"""The requests of a run: integers, acknowledged by the broker, sent while the faults happen."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from confluent_kafka import KafkaError, Message, Producer


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


class RequestStream(threading.Thread):
    """Sends 0, 1, 2, … in turn to each partition, no further than it was told to.

    A number is payload, key and correlation id at once. The client retries for longer than any
    fault lasts, so every number ends up acknowledged; one that does not is a failure of the run.
    """

    def __init__(self, bootstrap: str, topic: str, partitions: int, total: int) -> None:
        super().__init__(name="requests", daemon=True)
        self._topic = topic
        self._partitions = partitions
        self.total = total
        self.places: dict[int, Place] = {}
        self.failures: list[str] = []
        self.released = 0
        """How many may be sent."""
        self._ended = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "reconnect.backoff.max.ms": 1000,
                "log_level": 0,
            }
        )

    def release(self, count: int) -> None:
        """Allow the first ``count`` numbers to be sent."""
        self.released = max(self.released, min(count, self.total))

    def run(self) -> None:
        number = 0
        while number < self.total and not self._ended.is_set():
            if number >= self.released:
                self._producer.poll(0.02)
                continue
            self._send(number)
            number += 1
            self._producer.poll(0)
        while len(self._producer) and not self._ended.is_set():
            self._producer.flush(0.5)

    def finish(self, timeout: float) -> None:
        """Send the rest, and wait until all of it is acknowledged."""
        self.release(self.total)
        self.join(timeout)
        missing = self.total - len(self.places)
        assert not missing, f"{missing} requests were not acknowledged: {self.failures[:3]}"

    def end(self) -> None:
        """Send nothing more, whatever is left."""
        self._ended.set()
        self.join()

    def _send(self, number: int) -> None:
        def report(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self.places[number] = Place(message.partition() or 0, message.offset() or 0)
            else:
                self.failures.append(error.str())

        text = str(number).encode()
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    text,
                    text,
                    number % self._partitions,
                    on_delivery=report,
                    headers=[("content-type", b"text/plain"), ("correlation-id", text)],
                    timestamp=int(time.time() * 1000),
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                return
