"""What every librdkafka client of ours is made with, and how its troubles are told."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from stream_scorer.config import ConfigError, Kafka, Property, Settings

_log = logging.getLogger(__name__)

RECORD_ROOM: Final = 100_000
"""Bytes a record may need beside its payload or result: headers, key and framing."""

DEAD_LETTER_ROOM: Final = 64 * 1024
"""Bytes a dead letter may be larger than the request it keeps."""

DEFAULT_RECORD_BYTES: Final = 1_048_588
"""A topic's ``max.message.bytes`` where nobody sets it (Apache Kafka)."""

FETCH_BYTES: Final = 16 * 1024 * 1024
"""How much a consumer fetches ahead."""

QUEUE_KBYTES: Final = 64 * 1024
"""How much a producer queues before ``produce`` has to wait."""

ONLY_ERRORS: Final[dict[str, Any]] = {"delivery.report.only.error": True}
"""A report for each delivery would cost as much as scoring does; ``flush`` tells of all at once."""

REPEAT_AFTER: Final = 30.0
"""Seconds until the same broker trouble is logged again; librdkafka repeats it several a second."""

_FILE_FAILED: Final = re.compile(r"(ssl\.\w+\.location) failed: (.*)")


class BrokerTrouble:
    """Logs what goes wrong between a client and its brokers: an ``error_cb``.

    Called by librdkafka in whichever thread polls the client.
    """

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._logged.get(error.name(), -REPEAT_AFTER) >= REPEAT_AFTER:
            self._logged[error.name()] = now
            _log.warning("Kafka: %s", error.str())


def record_bytes(settings: Settings) -> int:
    """The size of the largest record that the limits allow on requests, results and replies."""
    largest = max(settings.limits.payload_bytes, settings.limits.result_bytes)
    return max(DEFAULT_RECORD_BYTES, largest + RECORD_ROOM)


def client_properties(kafka: Kafka) -> dict[str, Any]:
    """The properties of every client: the user's, as text, over our few defaults."""
    # Failed connections are told through BrokerTrouble, once; librdkafka's own lines repeat.
    return {
        "log_level": 2,
        "allow.auto.create.topics": False,
        # A broker that comes back is not left alone for ten seconds.
        "reconnect.backoff.max.ms": 1000,
    } | _as_text(kafka.common)


def producer_properties(
    settings: Settings,
    largest_request: int = 0,
    *,
    linger_ms: int = 5,
    queue_kbytes: int = QUEUE_KBYTES,
) -> dict[str, Any]:
    """A producer that loses nothing, repeats nothing by itself, and queues in bounds.

    Args:
        settings: the settings.
        largest_request: the largest record that the requests topic takes, in bytes, where it is
            known: the producer must be able to copy it to the dead-letter topic.
        linger_ms: how long a record waits for others, unless the user sets it.
        queue_kbytes: how much it queues, unless the user sets it.
    """
    # The client counts framing too, and a dead letter is larger than its request.
    largest = max(record_bytes(settings), largest_request) + DEAD_LETTER_ROOM
    return (
        {
            # A record that the queue cannot hold at all would be waited for without end.
            "queue.buffering.max.kbytes": max(queue_kbytes, 2 * largest // 1024),
            "compression.type": "lz4",
            "linger.ms": linger_ms,
        }
        | client_properties(settings.kafka)
        | _as_text(settings.kafka.producer)
        | {"enable.idempotence": True, "message.max.bytes": largest}
    )


def consumer_properties(settings: Settings) -> dict[str, Any]:
    """A consumer that fetches in bounds and leaves every commit to us."""
    largest = record_bytes(settings) + DEAD_LETTER_ROOM
    given = client_properties(settings.kafka) | _as_text(settings.kafka.consumer)
    # A dead member's partitions are another's after this, instead of after 45 s; and those that
    # move stand still until the others hear of it by a heartbeat, or for the second that the client
    # leaves between two joins (docs/scale.md). In the newer protocol the broker sets both.
    session = {"session.timeout.ms": 10_000, "heartbeat.interval.ms": 500}
    return (
        (session if is_classic(given) else {})
        | {
            "queued.max.messages.kbytes": FETCH_BYTES // 1024,
            "fetch.max.bytes": max(FETCH_BYTES, largest),
            "fetch.wait.max.ms": 10,
            # Once the queue was full the client looks again after this, by default a second: under
            # load it had run empty by then.
            "fetch.queue.backoff.ms": 10,
            "check.crcs": True,
        }
        | given
        | {
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "message.max.bytes": largest,
        }
    )


def is_classic(properties: Mapping[str, Any]) -> bool:
    """Whether a consumer's group is led by its members, and not by the broker (KIP-848)."""
    return str(properties.get("group.protocol", "classic")).lower() == "classic"


def check_properties(settings: Settings) -> None:
    """Have librdkafka look at the properties of both clients, before anything is waited for.

    Raises:
        ConfigError: it refuses one.
    """
    try:
        Producer(producer_properties(settings))
        Consumer(consumer_properties(settings) | {"group.id": settings.worker.group})
    except (KafkaException, ValueError, TypeError) as error:
        raise wrong_property(error, settings.kafka) from None


def wrong_property(error: Exception, kafka: Kafka) -> ConfigError:
    """What librdkafka said of a property when a client was made, as a configuration error."""
    if isinstance(error, KafkaException):
        error = error.args[0]
    text = error.str() if isinstance(error, KafkaError) else str(error)
    # Of a file that cannot be used it says only in which of OpenSSL's functions that was found.
    found = _FILE_FAILED.search(text)
    if found is None or found[1] not in kafka.common:
        return ConfigError(f"{text} @ kafka")
    path = Path(str(kafka.common[found[1]]))
    try:
        path.open("rb").close()
    except OSError as lack:
        return ConfigError(f"{path}: {lack.strerror} @ kafka.{found[1]}")
    password = " (is ssl.key.password right?)" if found[1] == "ssl.key.location" else ""
    return ConfigError(f"{path} cannot be used{password}: {found[2]} @ kafka.{found[1]}")


def _as_text(properties: Mapping[str, Property]) -> dict[str, Any]:
    # librdkafka spells booleans in lower case.
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in properties.items()
    }
