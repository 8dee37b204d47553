"""Request and reply over Kafka: a request is produced, its reply comes back by correlation id.

Each process takes one partition of the replies topic for itself, with no consumer group, and reads
it from the offset at which it ended when the process became ready. The event loop produces and
holds the futures; one thread owns the consumer, one serves the producer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from http_facade.calls import (
    DeliveryFailed,
    NotReady,
    Overloaded,
    Reply,
    ReplyLost,
    ReplyTimeout,
    RequestTooLarge,
)
from http_facade.replies import Replies, reply_properties
from http_facade.requests import Requests, request_properties
from stream_scorer.config import Settings
from stream_scorer.kafka.clients import wrong_property
from stream_scorer.protocol import (
    CORRELATION_ID,
    DEADLINE,
    REPLY_PARTITION,
    REPLY_TOPIC,
    Header,
)

_log = logging.getLogger(__name__)

_FEW: Final = 16
"""Up to so many pending requests each is sent at once; above, the linger forms batches."""

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
        self._accepts: str | None = None
        self._pid: int | None = None
        self._loop: asyncio.AbstractEventLoop
        self._requests: Requests
        self._replies: Replies

    def start(self) -> None:
        """Make the Kafka clients and begin to connect; returns at once.

        Raises:
            ConfigError: librdkafka refuses a property.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._requests = Requests(self._settings, self._undelivered, self._doubt)
            self._replies = Replies(
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

    @property
    def accepts(self) -> str | None:
        """The ``accepts`` header of the last reply that answered a request."""
        return self._accepts

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
                self._accepts = reply.accepts or self._accepts
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


def check_properties(settings: Settings) -> None:
    """Make the facade's Kafka clients and drop them, to see whether librdkafka takes ``kafka:``.

    For a process that does not fork afterwards.

    Raises:
        ConfigError: it does not.
    """
    try:
        Consumer(reply_properties(settings)).close()
        Producer(request_properties(settings))
    except (KafkaException, ValueError, TypeError) as error:
        raise wrong_property(error) from None
