"""The facade's producer of requests."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_scorer.config import Settings
from stream_scorer.kafka.clients import producer_properties
from stream_scorer.protocol import Header

_log = logging.getLogger(__name__)

_LINGER_MS: Final = 2
"""Of a worker's 5 ms each caller would wait for most; without any, each request is a batch."""

_SERVE_EVERY: Final = 0.1
"""Seconds between two looks at the producer's delivery reports while nobody hurries it."""

_SERVE_SOON: Final = 0.005
"""The same while somebody waits to hear that a request is stored."""

_FLUSH: Final = 1.5
"""Seconds that requests have to leave at the end."""


class Requests:
    """The producer. ``send`` is called on the event loop; one thread serves delivery reports.

    Args:
        settings: the settings.
        undelivered: told, in the thread, which request failed and why.
        doubt: told, in the thread, that the broker may be away.
    """

    def __init__(
        self,
        settings: Settings,
        undelivered: Callable[[bytes, KafkaError], None],
        doubt: Callable[[], None],
    ) -> None:
        self._topic = settings.topics.requests
        self._undelivered = undelivered
        self._doubt = doubt
        self._settings = settings
        self._producer = self._new_producer()
        self._hurry = threading.Event()
        self._awaited: set[bytes] = set()
        self._stopping = False
        self.thread = threading.Thread(target=self._serve, name="requests", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._hurry.set()

    def forget(self, correlation_id: bytes) -> None:
        """Nobody waits any more to hear that this request is stored."""
        self._awaited.discard(correlation_id)

    def send(
        self,
        correlation_id: bytes,
        payload: bytes,
        headers: list[Header],
        *,
        at_once: bool,
        stored: Callable[[], None] | None = None,
    ) -> None:
        """Queue a request; never blocks. ``stored`` is told, in the thread, that Kafka has it.

        Raises:
            BufferError: the queue is full.
            KafkaException: the client refuses the record.
        """
        if stored is not None:
            self._awaited.add(correlation_id)
        try:
            self._producer.produce(
                self._topic,
                value=payload,
                headers=[*headers],
                on_delivery=functools.partial(self._on_delivery, correlation_id, stored),
            )
        except (BufferError, KafkaException):
            self._awaited.discard(correlation_id)
            raise
        if at_once or stored is not None:
            self._hurry.set()

    def look_up(self, timeout: float) -> None:
        """Fetch the topic's metadata, so that the first request need not wait for it.

        Where that fails, the next attempt is a new client's: see ``Replies``.

        Raises:
            KafkaException: no broker answers in time.
        """
        try:
            self._producer.list_topics(self._topic, timeout=timeout)
        except KafkaException:
            lost, self._producer = self._producer, self._new_producer()
            lost.purge()
            lost.poll(0)  # tells who waits
            raise

    def _new_producer(self) -> Producer:
        return Producer(request_properties(self._settings) | {"error_cb": self._on_error})

    def _serve(self) -> None:
        while not self._stopping:
            if self._hurry.wait(_SERVE_SOON if self._awaited else _SERVE_EVERY):
                self._hurry.clear()
                # The shortest flush that is not rounded to none: it sends what lingers.
                self._producer.flush(0.001)
            else:
                self._producer.poll(0)
        if left := self._producer.flush(_FLUSH):
            self._producer.purge()
            self._producer.poll(0)
            _log.warning("%d requests were not sent before the end", left)

    def _on_delivery(
        self,
        correlation_id: bytes,
        stored: Callable[[], None] | None,
        error: KafkaError | None,
        _message: Message,
    ) -> None:
        self._awaited.discard(correlation_id)
        if error is None:
            if stored is not None:
                stored()
        else:
            self._undelivered(correlation_id, error)
            self._doubt()

    def _on_error(self, error: KafkaError) -> None:
        _log.debug("requests: %s", error)
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._doubt()


def request_properties(settings: Settings) -> dict[str, Any]:
    """The producer's properties."""
    queue_kbytes = settings.facade.max_pending_bytes // 1024
    return producer_properties(settings, linger_ms=_LINGER_MS, queue_kbytes=queue_kbytes) | {
        # A repeated request costs a scoring, and its second reply is dropped; a producer without
        # idempotence has no state that only a new one leaves.
        "enable.idempotence": False,
        # Some time is left to tell the caller, before the timeout does.
        "delivery.timeout.ms": max(100, int(settings.facade.timeout * 800)),
        # A batch goes to one partition, the next to another. By default requests that are sent
        # alone all land on one; with 0 each goes to another, and the broker gets a batch for each.
        "sticky.partitioning.linger.ms": _LINGER_MS,
    }
