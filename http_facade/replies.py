"""The facade's consumer of replies, on a partition of its own."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from http_facade.calls import Reply
from stream_scorer.config import ConfigError, Settings
from stream_scorer.kafka.clients import REPEAT_AFTER, consumer_properties
from stream_scorer.kafka.messages import UnreadableHeaders, read_headers
from stream_scorer.kafka.topics import BrokerUnreachable, TopicError, Topics
from stream_scorer.protocol import (
    ACCEPTS,
    CONTENT_TYPE,
    CORRELATION_ID,
    MODEL,
    SERVER_TIMING,
    STATUS,
)

_log = logging.getLogger(__name__)

_POLL: Final = 0.2
"""Seconds a poll for replies waits, and so how late the thread sees that it should stop."""

_MOST: Final = 500
"""Replies taken at once."""

_ATTEMPT: Final = 2.0
"""Seconds until a broker that does not answer is asked again."""

_LOOK_EVERY: Final = 5.0
"""Seconds between two looks whether the broker is there and the replies are where they were."""

_PAUSE: Final = 0.5
"""Seconds between two attempts to connect."""


class Replies:
    """The consumer, and the thread that owns it.

    The thread connects, creates what is missing, takes a partition, and reads; where the broker
    goes away it starts anew and reads on from where it was. ``doubt`` asks it to look whether the
    broker is there.

    Args:
        settings: the settings.
        prefixes: what this process's correlation ids begin with; the first names the process.
        connected: called in the thread when the broker is there, with the seconds it may take.
        arrived: told, in the thread, of own replies with their correlation ids, and how many
            others' and unreadable ones were skipped.
        lost: told, in the thread, that replies are gone that were not read.
    """

    def __init__(
        self,
        settings: Settings,
        prefixes: tuple[bytes, ...],
        connected: Callable[[float], None],
        arrived: Callable[[list[tuple[bytes, Reply]], int, int], None],
        lost: Callable[[], None],
    ) -> None:
        self.topic = settings.topics.replies
        self.partition = -1
        self.next_offset: int | None = None
        self.trouble: str | None = None
        self.doubt = threading.Event()
        self._settings = settings
        self._prefixes = prefixes
        self._connected = connected
        self._arrived = arrived
        self._lost = lost
        self._assigned = False
        self._logged = -REPEAT_AFTER
        self._stopping = threading.Event()
        self._consumer = self._new_consumer()
        self.thread = threading.Thread(target=self._run, name="replies", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._stopping.set()

    @property
    def ready(self) -> bool:
        """Whether a reply sent now would be read."""
        return self._assigned and not self._stopping.is_set()

    def _run(self) -> None:
        failed = False
        try:
            while not self._stopping.is_set():
                try:
                    if failed:
                        self._renew()
                    self._connect()
                    self._read()
                except (BrokerUnreachable, TopicError, ConfigError, KafkaException) as error:
                    failed = True
                    self._away(error)
                    self._stopping.wait(_PAUSE)
        finally:
            self._assigned = False
            self._consumer.close()

    def _new_consumer(self) -> Consumer:
        return Consumer(reply_properties(self._settings) | {"error_cb": self._on_error})

    def _renew(self) -> None:
        # A broker that comes back from a hang says for a moment that its cluster has no brokers. A
        # client that hears so drops its only one, and never finds it again (librdkafka 2.16); a new
        # one does, and goes on where this one was.
        lost, self._consumer = self._consumer, self._new_consumer()
        lost.close()

    def _connect(self) -> None:
        # Of each attempt, for the same reason as in `_renew`; while all is well there is none.
        topics = Topics(self._settings, _ATTEMPT)
        topics.wait_for_broker(_ATTEMPT, self._stopping.is_set)
        topics.ensure_for_caller()
        self._connected(_ATTEMPT)
        self._choose(topics.partitions(self.topic))
        self._assign()
        # A reply sent after the assignment was still lost before the first poll was done.
        first = self._consumer.poll(0.01)
        self.doubt.clear()
        self._assigned = True
        self.trouble = None
        _log.info(
            "replies are read from %s/%s at offset %s",
            self.topic,
            self.partition,
            self.next_offset,
        )
        if first is not None:
            self._take([first])

    def _choose(self, partitions: int) -> None:
        if not 0 <= self.partition < partitions:
            self.partition = zlib.crc32(self._prefixes[0]) % partitions
            if self.next_offset is not None:
                self.next_offset = None
                self._lost()

    def _assign(self) -> None:
        low, high = self._watermarks()
        if self.next_offset is None:
            # An explicit offset: "the end" would be looked up later, past replies sent meanwhile.
            self.next_offset = high
        elif not low <= self.next_offset <= high:
            _log.error(
                "%s/%s: replies from offset %d on are gone (the topic holds %d to %d)",
                self.topic,
                self.partition,
                self.next_offset,
                low,
                high,
            )
            self.next_offset = high
            self._lost()
        self._consumer.assign([TopicPartition(self.topic, self.partition, self.next_offset)])

    def _watermarks(self) -> tuple[int, int]:
        place = TopicPartition(self.topic, self.partition)
        return self._consumer.get_watermark_offsets(place, timeout=_ATTEMPT, cached=False)

    def _read(self) -> None:
        look_at = time.monotonic() + _LOOK_EVERY
        while not self._stopping.is_set():
            if self.doubt.is_set() or time.monotonic() >= look_at:
                self.doubt.clear()
                self._look()
                look_at = time.monotonic() + _LOOK_EVERY
            first = self._consumer.poll(_POLL)
            if first is not None:
                self._take([first, *self._consumer.consume(_MOST, 0)])

    def _look(self) -> None:
        # A broker that hangs, or a topic that is made anew, is not told by a fetch for a long time.
        try:
            low, high = self._watermarks()
        except KafkaException as error:
            raise BrokerUnreachable(
                f"Kafka at {self._settings.kafka.bootstrap} is gone: {error.args[0].str()}"
            ) from None
        if self.next_offset is None or not low <= self.next_offset <= high:
            self._assign()

    def _take(self, messages: list[Message]) -> None:
        replies: list[tuple[bytes, Reply]] = []
        foreign = unreadable = 0
        failure: KafkaError | None = None
        for message in messages:
            failure = message.error()
            offset = message.offset()
            if failure is not None and failure.code() == KafkaError._PARTITION_EOF:
                # Past the markers of transactions too, which are no records and yet have offsets:
                # once they alone are deleted, no reply is lost.
                self.next_offset, failure = offset, None
                continue
            if failure is not None and failure.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                # The client looks for the group that it has to be given; we join none.
                failure = None
                continue
            if failure is not None:
                break
            if offset is not None:
                self.next_offset = offset + 1
            try:
                headers = read_headers(message)
            except UnreadableHeaders:
                unreadable += 1
                continue
            values = {name: value for name, value in headers if value is not None}
            correlation_id = values.get(CORRELATION_ID, b"")
            if correlation_id.startswith(self._prefixes):
                replies.append((correlation_id, reply(message.value(), values)))
            else:
                foreign += 1
        self._arrived(replies, foreign, unreadable)
        if failure is not None:
            raise KafkaException(failure)

    def _away(self, error: Exception) -> None:
        first = self._assigned or self.trouble is None
        self._assigned = False
        self.trouble = str(error)
        if isinstance(error, KafkaException):
            self.trouble = f"Kafka at {self._settings.kafka.bootstrap}: {error.args[0].str()}"
        now = time.monotonic()
        if first or now - self._logged >= REPEAT_AFTER:
            self._logged = now
            _log.warning("not ready, trying again: %s", self.trouble)

    def _on_error(self, error: KafkaError) -> None:
        _log.debug("replies: %s", error)
        # Also told when idle connections are closed, so it is a reason to look, no more.
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.doubt.set()


def reply(body: bytes | None, values: Mapping[str, bytes]) -> Reply:
    """The reply that a record holds, by its value and its headers."""

    def text(name: str) -> str | None:
        value = values.get(name)
        return None if value is None else value.decode("utf-8", "replace")

    return Reply(
        body=body or b"",
        status=text(STATUS),
        content_type=text(CONTENT_TYPE),
        model=text(MODEL),
        server_timing=text(SERVER_TIMING),
        accepts=text(ACCEPTS),
    )


def reply_properties(settings: Settings) -> dict[str, Any]:
    """The consumer's properties."""
    return consumer_properties(settings) | {
        # librdkafka wants a group; none is joined and nothing is committed.
        "group.id": f"{settings.worker.group}-facade",
        "auto.offset.reset": "error",
        # A reply waits for no other worker's open transaction.
        "isolation.level": "read_uncommitted",
        "enable.partition.eof": True,
    }
