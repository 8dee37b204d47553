"""librdkafka's properties, the same for every contender that lets one set them."""

from __future__ import annotations

from typing import Final

Properties = dict[str, str | int | bool]

COMMIT_INTERVAL: Final = 0.1
"""Seconds between commits, and so the length of a transaction."""

CONSUMER: Final[Properties] = {
    "auto.offset.reset": "earliest",
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 500,
    "queued.max.messages.kbytes": 16 * 1024,
    "fetch.max.bytes": 16 * 1024 * 1024,
    "fetch.wait.max.ms": 10,
    "fetch.queue.backoff.ms": 10,
    "check.crcs": True,
}
"""How requests are fetched."""

PRODUCER: Final[Properties] = {
    # acks=all, and five requests in flight.
    "enable.idempotence": True,
    "compression.type": "lz4",
    "linger.ms": 5,
    "queue.buffering.max.kbytes": 64 * 1024,
}
"""How answers are produced."""
