"""A real Kafka of the benchmarks' own."""

from __future__ import annotations

from tests.kafka_server import KafkaServer


class BenchmarkKafka(KafkaServer):
    """The Kafka that the tests run on, with its process known, to tell what it uses."""

    def _home(self) -> None:
        """Its data are on disk, as anybody's are."""

    @property
    def pid(self) -> int:
        """The running node's process."""
        if self._process is None:
            raise RuntimeError("this Kafka is not running")
        return self._process.pid
