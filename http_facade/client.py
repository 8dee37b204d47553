"""Request and reply over Kafka: a request is produced, its reply comes back by correlation id.

Each process takes one partition of the replies topic for itself, with no consumer group, and reads
it from the offset at which it ended when the process became ready. The event loop produces and
holds the futures; one thread owns the consumer, one serves the producer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from http_facade.calls import (
    DeliveryFailed,
    NotReady,
    Overloaded,
    Reply,
    ReplyLost,
    ReplyTimeout,
    RequestTooLarge,
)
from stream_scorer.config import Settings
from stream_scorer.kafka.clients import (
    REPEAT_AFTER,
    consumer_properties,
    producer_properties,
    wrong_property,
)
from stream_scorer.kafka.messages import UnreadableHeaders, read_headers
from stream_scorer.kafka.topics import BrokerUnreachable, TopicError, Topics
from stream_scorer.protocol import (
    CONTENT_TYPE,
    CORRELATION_ID,
    DEADLINE,
    MODEL,
    REPLY_PARTITION,
    REPLY_TOPIC,
    SERVER_TIMING,
    STATUS,
    Header,
)

_log = logging.getLogger(__name__)

_FEW: Final = 16
"""Up to so many pending requests each is sent at once; above, the linger forms batches."""

_LINGER_MS: Final = 2
"""Of a worker's 5 ms each caller would wait for most; without any, each request is a batch."""

_SERVE_EVERY: Final = 0.1
"""Seconds between two looks at the producer's delivery reports while nobody hurries it."""

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

_CLOSE: Final = 3.0
"""Seconds that closing may take."""

_REMEMBERED: Final = 10_000
"""Ended requests that are remembered, to tell a late or duplicate reply from an unknown one."""


@dataclass(slots=True)
class Counts:
    """What became of requests and replies since the process began."""

    requests: int = 0
    replies: int = 0
    timeouts: int = 0
    delivery_failures: int = 0
    lost: int = 0
    """Requests whose reply was on a part of the topic that is gone."""
    late: int = 0
    duplicate: int = 0
    orphan: int = 0
    """Replies that bear this process's name and answer no request of it."""
    foreign: int = 0
    """Replies to another process on the same partition."""
    unreadable: int = 0


class RequestReplyClient:
    """Sends requests and hands each caller its own reply.

    ``start``, ``close`` and ``call`` belong to one event loop in one process; ``snapshot`` may be
    read anywhere. At most ``facade.max_pending`` requests wait at a time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._instance = secrets.token_hex(8)
        self._prefix = f"{self._instance}.".encode()
        self._pending: dict[bytes, asyncio.Future[Reply]] = {}
        self._ended: OrderedDict[bytes, bool] = OrderedDict()  # by id, whether it was answered
        self._counts = Counts()
        self._model: str | None = None
        self._pid: int | None = None
        self._loop: asyncio.AbstractEventLoop
        self._requests: _Requests
        self._replies: _Replies

    def start(self) -> None:
        """Make the Kafka clients and begin to connect; returns at once.

        Raises:
            ConfigError: librdkafka refuses a property.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._requests = _Requests(self._settings, self._undelivered, self._doubt)
            self._replies = _Replies(
                self._settings, self._prefix, self._requests.look_up, self._arrived, self._lost
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error) from None
        self._pid = os.getpid()
        self._requests.start()
        self._replies.start()

    async def close(self) -> None:
        """Stop both threads; requests that still wait fail with ``NotReady``."""
        if self._pid is None:
            return
        self._replies.stop()
        self._fail_pending(NotReady, "the service is stopping")
        self._requests.stop()
        deadline = time.monotonic() + _CLOSE
        for thread in (self._replies.thread, self._requests.thread):
            await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.warning("%s does not stop; the process ends without it", thread.name)

    @property
    def ready(self) -> bool:
        """Whether replies are assigned and the broker was there at the last look."""
        return self._pid is not None and self._replies.ready

    @property
    def alive(self) -> bool:
        """Whether both threads run."""
        return (
            self._pid is not None
            and self._replies.thread.is_alive()
            and self._requests.thread.is_alive()
        )

    @property
    def model(self) -> str | None:
        """The ``model`` header of the last reply that answered a request."""
        return self._model

    async def call(self, payload: bytes, headers: Sequence[Header], timeout: float) -> Reply:
        """Send a request and wait for its reply.

        Args:
            payload: the record's value.
            headers: headers from the caller, allow-listed; ours are added after them and win.
            timeout: seconds to wait; also the request's deadline.

        Raises:
            NotReady: there is no broker, or the replies are not assigned; nothing was sent.
            Overloaded: too much is pending; nothing was sent.
            RequestTooLarge: the client or the topic takes no record of this size.
            DeliveryFailed: the request did not reach its topic.
            ReplyLost: the part of the replies topic that was to be read is gone.
            ReplyTimeout: no reply in time.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("started in another process: a Kafka client survives no fork")
        if not self._replies.ready:
            raise NotReady("not connected to Kafka")
        if len(self._pending) >= self._settings.facade.max_pending:
            raise Overloaded(f"{len(self._pending)} requests are waiting already")
        correlation_id = self._prefix + secrets.token_hex(16).encode()
        record_headers = [
            *headers,
            (REPLY_TOPIC, self._replies.topic.encode()),
            (REPLY_PARTITION, str(self._replies.partition).encode()),
            (CORRELATION_ID, correlation_id),
            (DEADLINE, str(int((time.time() + timeout) * 1000)).encode()),
        ]
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._pending[correlation_id] = future
        answered = False
        try:
            self._send(correlation_id, payload, record_headers)
            del payload  # librdkafka has its copy; many large ones may be waiting
            # PERF: a tenth of the facade's time less than asyncio.timeout().
            timer = self._loop.call_later(timeout, self._expire, correlation_id, timeout)
            try:
                reply = await future
            finally:
                timer.cancel()
            answered = True
            return reply
        finally:
            del self._pending[correlation_id]
            self._remember(correlation_id, answered)

    def snapshot(self) -> dict[str, object]:
        """Counters and the place in the replies; asks no broker."""
        replies = self._replies if self._pid is not None else None
        return {
            "bootstrap.servers": self._settings.kafka.bootstrap,
            "ready": self.ready,
            "trouble": replies.trouble if replies else None,
            "instance": self._instance,
            "requests": {"topic": self._settings.topics.requests},
            "replies": {
                "topic": self._settings.topics.replies,
                "partition": replies.partition if replies else None,
                "next_offset": replies.next_offset if replies else None,
            },
            "pending": len(self._pending),
            "max_pending": self._settings.facade.max_pending,
            "counts": asdict(self._counts),
        }

    def _send(self, correlation_id: bytes, payload: bytes, headers: list[Header]) -> None:
        try:
            self._requests.send(
                correlation_id, payload, headers, at_once=len(self._pending) <= _FEW
            )
        except BufferError:
            raise Overloaded("the queue of requests to Kafka is full") from None
        except KafkaException as error:
            raise self._failure(error.args[0]) from None
        self._counts.requests += 1

    def _failure(self, error: KafkaError) -> Exception:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return RequestTooLarge("the payload is larger than the requests topic takes")
        self._counts.delivery_failures += 1
        return DeliveryFailed(f"the request could not be handed to Kafka: {error.name()}")

    def _remember(self, correlation_id: bytes, answered: bool) -> None:
        self._ended[correlation_id] = answered
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    # ---- on the event loop, asked for by the threads ----

    def _resolve(self, replies: list[tuple[bytes, Reply]]) -> None:
        for correlation_id, reply in replies:
            future = self._pending.get(correlation_id)
            if future is not None and not future.done():
                future.set_result(reply)
                self._counts.replies += 1
                self._model = reply.model or self._model
                continue
            answered = self._ended.get(correlation_id)
            if future is not None:
                answered = not future.cancelled() and future.exception() is None
            if answered is None:
                self._counts.orphan += 1
            elif answered:
                self._counts.duplicate += 1
            else:
                self._counts.late += 1

    def _expire(self, correlation_id: bytes, timeout: float) -> None:
        future = self._pending.get(correlation_id)
        if future is not None and not future.done():
            self._counts.timeouts += 1
            future.set_exception(
                ReplyTimeout(
                    f"no answer within {timeout:.3g} s; whether the request was or will be scored "
                    "is unknown",
                    correlation_id,
                )
            )

    def _refuse(self, correlation_id: bytes, error: KafkaError) -> None:
        future = self._pending.get(correlation_id)
        if future is not None and not future.done():
            future.set_exception(self._failure(error))

    def _fail_pending(self, kind: type[Exception], text: str) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(kind(text))

    def _lose_pending(self) -> None:
        self._counts.lost += len(self._pending)
        self._fail_pending(
            ReplyLost,
            "Kafka lost replies before they were read; whether the request was scored is unknown",
        )

    # ---- in the threads ----

    def _on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _arrived(self, replies: list[tuple[bytes, Reply]], foreign: int, unreadable: int) -> None:
        self._counts.foreign += foreign
        self._counts.unreadable += unreadable
        if replies:
            self._on_loop(self._resolve, replies)

    def _lost(self) -> None:
        self._on_loop(self._lose_pending)

    def _undelivered(self, correlation_id: bytes, error: KafkaError) -> None:
        self._on_loop(self._refuse, correlation_id, error)

    def _doubt(self) -> None:
        self._replies.doubt.set()


class _Requests:
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
        self._producer = Producer(_request_properties(settings) | {"error_cb": self._on_error})
        self._hurry = threading.Event()
        self._stopping = False
        self.thread = threading.Thread(target=self._serve, name="requests", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._hurry.set()

    def send(
        self, correlation_id: bytes, payload: bytes, headers: list[Header], *, at_once: bool
    ) -> None:
        """Queue a request; never blocks.

        Raises:
            BufferError: the queue is full.
            KafkaException: the client refuses the record.
        """
        self._producer.produce(
            self._topic,
            value=payload,
            headers=[*headers],
            on_delivery=functools.partial(self._on_delivery, correlation_id),
        )
        if at_once:
            self._hurry.set()

    def look_up(self, timeout: float) -> None:
        """Fetch the topic's metadata, so that the first request need not wait for it.

        Raises:
            KafkaException: no broker answers in time.
        """
        self._producer.list_topics(self._topic, timeout=timeout)

    def _serve(self) -> None:
        while not self._stopping:
            if self._hurry.wait(_SERVE_EVERY):
                self._hurry.clear()
                # The shortest flush that is not rounded to none: it sends what lingers.
                self._producer.flush(0.001)
            else:
                self._producer.poll(0)
        if left := self._producer.flush(_CLOSE / 2):
            self._producer.purge()
            self._producer.poll(0)
            _log.warning("%d requests were not sent before the end", left)

    def _on_delivery(
        self, correlation_id: bytes, error: KafkaError | None, _message: Message
    ) -> None:
        if error is not None:
            self._undelivered(correlation_id, error)
            self._doubt()

    def _on_error(self, error: KafkaError) -> None:
        _log.debug("requests: %s", error)
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._doubt()


class _Replies:
    """The consumer, and the thread that owns it.

    The thread connects, creates what is missing, takes a partition, and reads; where the broker
    goes away it starts anew and reads on from where it was. ``doubt`` asks it to look whether the
    broker is there.

    Args:
        settings: the settings.
        prefix: what this process's correlation ids begin with.
        connected: called in the thread when the broker is there, with the seconds it may take.
        arrived: told, in the thread, of own replies with their correlation ids, and how many
            others' and unreadable ones were skipped.
        lost: told, in the thread, that replies are gone that were not read.
    """

    def __init__(
        self,
        settings: Settings,
        prefix: bytes,
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
        self._prefix = prefix
        self._connected = connected
        self._arrived = arrived
        self._lost = lost
        self._assigned = False
        self._topics: Topics | None = None
        self._logged = -REPEAT_AFTER
        self._stopping = threading.Event()
        self._consumer = Consumer(_reply_properties(settings) | {"error_cb": self._on_error})
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
        try:
            while not self._stopping.is_set():
                try:
                    self._connect()
                    self._read()
                except (BrokerUnreachable, TopicError, KafkaException) as error:
                    self._away(error)
                    self._stopping.wait(_PAUSE)
        finally:
            self._assigned = False
            self._consumer.close()

    def _connect(self) -> None:
        topics = self._topics = self._topics or Topics(self._settings)
        topics.wait_for_broker(_ATTEMPT, self._stopping.is_set)
        topics.ensure()
        self._connected(_ATTEMPT)
        self._choose(topics.partitions(self.topic))
        self._assign()
        # A reply sent after the assignment was still lost before the first poll was done.
        first = self._consumer.poll(0.01)
        # While all is well, no third client keeps its connections and threads.
        self._topics = None
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
            self.partition = zlib.crc32(self._prefix) % partitions
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
            if failure is not None:
                break
            offset = message.offset()
            if offset is not None:
                self.next_offset = offset + 1
            try:
                headers = read_headers(message)
            except UnreadableHeaders:
                unreadable += 1
                continue
            values = {name: value for name, value in headers if value is not None}
            correlation_id = values.get(CORRELATION_ID, b"")
            if correlation_id.startswith(self._prefix):
                replies.append((correlation_id, _reply(message.value(), values)))
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


def _reply(body: bytes | None, values: dict[str, bytes]) -> Reply:
    def text(name: str) -> str | None:
        value = values.get(name)
        return None if value is None else value.decode("utf-8", "replace")

    return Reply(
        body=body or b"",
        status=text(STATUS),
        content_type=text(CONTENT_TYPE),
        model=text(MODEL),
        server_timing=text(SERVER_TIMING),
    )


def check_properties(settings: Settings) -> None:
    """Make the facade's Kafka clients and drop them, to see whether librdkafka takes ``kafka:``.

    For a process that does not fork afterwards.

    Raises:
        ConfigError: it does not.
    """
    try:
        Consumer(_reply_properties(settings)).close()
        Producer(_request_properties(settings))
    except (KafkaException, ValueError, TypeError) as error:
        raise wrong_property(error) from None


def _request_properties(settings: Settings) -> dict[str, Any]:
    return producer_properties(settings, linger_ms=_LINGER_MS) | {
        # A repeated request costs a scoring, and its second reply is dropped; a producer without
        # idempotence has no state that only a new one leaves.
        "enable.idempotence": False,
        # Some time is left to tell the caller, before the timeout does.
        "delivery.timeout.ms": max(100, int(settings.facade.timeout * 800)),
        "delivery.report.only.error": True,
        # A batch goes to one partition, the next to another. By default requests that are sent
        # alone all land on one; with 0 each goes to another, and the broker gets a batch for each.
        "sticky.partitioning.linger.ms": _LINGER_MS,
    }


def _reply_properties(settings: Settings) -> dict[str, Any]:
    return consumer_properties(settings) | {
        # librdkafka wants a group; none is joined and nothing is committed.
        "group.id": f"{settings.worker.group}-facade",
        "auto.offset.reset": "error",
        # A reply waits for no other worker's open transaction.
        "isolation.level": "read_uncommitted",
    }
