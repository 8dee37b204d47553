"""Replies as the topic keeps them, for callers that did not wait: any process finds any reply."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from http_facade.calls import (
    NoSuchPrediction,
    NotReady,
    Overloaded,
    Place,
    PredictionGone,
    Reply,
)
from http_facade.replies import reply, reply_properties
from stream_scorer.config import Settings
from stream_scorer.kafka.messages import UnreadableHeaders, read_headers
from stream_scorer.protocol import CORRELATION_ID

_MOST_BYTES: Final = 8 * 1024 * 1024
"""So much of the topic one search reads."""

_MOST_SECONDS: Final = 1.0
"""So long one search takes, once it has begun."""

_SEARCHES: Final = 4
"""Searches at a time; each needs a consumer, with its connections and its fetched records."""

_WAITING: Final = 32
"""Searches that may wait for others; each takes some 20 ms when it begins near its reply."""

_AT_ONCE: Final = 500
"""Records taken at once."""

_FETCH_KBYTES: Final = 1024
"""How much a search fetches ahead."""


class ReplyLog:
    """Searches the replies topic for single replies. ``find`` belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topics.replies
        self._idle: SimpleQueue[Consumer] = SimpleQueue()
        self._threads = ThreadPoolExecutor(_SEARCHES, thread_name_prefix="reply-log")
        self._searching = 0

    async def find(self, place: Place) -> Reply | Place:
        """Look for a reply from ``place`` on, in at most 8 MiB and 1 s.

        Returns:
            The reply; or, where it may be further on or still to come, the place to go on from.

        Raises:
            NoSuchPrediction: the topic has no such partition.
            PredictionGone: the deadline has passed, and no reply is on the topic.
            NotReady: the broker is not there.
            Overloaded: too many searches are waiting.
        """
        if self._searching >= _SEARCHES + _WAITING:
            raise Overloaded("too many look for predictions already")
        self._searching += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._search, place
            )
        except KafkaException as error:
            raise _told(error.args[0]) from None
        finally:
            self._searching -= 1

    async def close(self) -> None:
        """Close what was opened; searches that run are waited for."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        while not self._idle.empty():
            await asyncio.to_thread(self._idle.get().close)

    def _search(self, place: Place) -> Reply | Place:
        try:
            consumer = self._idle.get_nowait()
        except Empty:
            consumer = Consumer(_properties(self._settings))
        try:
            return self._read(consumer, place)
        finally:
            consumer.unassign()
            self._idle.put(consumer)

    def _read(self, consumer: Consumer, place: Place) -> Reply | Place:
        deadline = time.monotonic() + _MOST_SECONDS
        at = TopicPartition(self._topic, place.partition)
        low, high = consumer.get_watermark_offsets(at, timeout=_MOST_SECONDS, cached=False)
        if place.offset > high:
            # Behind it are only transactions that are open yet.
            return self._pending(place)
        offset = max(place.offset, low)
        consumer.assign([TopicPartition(self._topic, place.partition, offset)])
        wanted = place.correlation_id.encode()
        size = 0
        while (left := deadline - time.monotonic()) > 0:
            first = consumer.poll(left)
            if first is None:
                break
            for message in (first, *consumer.consume(_AT_ONCE, 0)):
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    return self._pending(place._replace(offset=message.offset() or offset))
                if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                    continue  # we join none; see `Replies`
                if error is not None:
                    raise KafkaException(error)
                offset = (message.offset() or 0) + 1
                body = message.value()
                size += len(body or b"")
                try:
                    headers = read_headers(message)
                except UnreadableHeaders:
                    headers = []
                values = {name: value for name, value in headers if value is not None}
                if values.get(CORRELATION_ID) == wanted:
                    return reply(body, values)
                if size >= _MOST_BYTES:
                    return place._replace(offset=offset)
        return place._replace(offset=offset)

    def _pending(self, place: Place) -> Place:
        # A worker may come to an expired request, and say so, a little after its deadline.
        if time.time() * 1000 > place.until + self._settings.facade.timeout * 1000:
            raise PredictionGone(
                "there is no answer: none came by the request's deadline, or it is no longer kept"
            )
        return place


def _properties(settings: Settings) -> dict[str, Any]:
    return reply_properties(settings) | {
        # What a transaction that is open or aborted holds is no answer, and nobody waits here.
        "isolation.level": "read_committed",
        "queued.max.messages.kbytes": _FETCH_KBYTES,
        "max.partition.fetch.bytes": _FETCH_KBYTES * 1024,
    }


def _told(error: KafkaError) -> Exception:
    unknown = {KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART}
    if error.code() in unknown:
        return NoSuchPrediction("no such prediction")
    if error.code() == KafkaError._AUTO_OFFSET_RESET:
        return PredictionGone("the answer is no longer kept")
    return NotReady("Kafka does not answer")
