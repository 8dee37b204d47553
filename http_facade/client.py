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
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from http_facade.calls import (
    DeliveryFailed,
    NotReady,
    Overloaded,
    Place,
    Reply,
    ReplyLost,
    ReplyTimeout,
    RequestTooLarge,
)
from http_facade.metrics import Metrics
from http_facade.replies import Replies, reply_properties
from http_facade.reply_log import ReplyLog
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

_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at what the gauges show."""

_REMEMBERED: Final = 10_000
"""Ended requests that are remembered, to tell a late or duplicate reply from an unknown one."""


class RequestReplyClient:
    """Sends requests and hands each caller its own reply.

    ``start``, ``close`` and ``call`` belong to one event loop in one process; ``snapshot`` may be
    read anywhere. At most ``facade.max_pending`` requests wait at a time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._instance = secrets.token_hex(8)
        self._prefix = f"{self._instance}.".encode()
        # Requests that nobody waits for bear another name, so that their replies are told apart
        # from those that nobody asked for, however late they come.
        self._deferring = secrets.token_hex(8)
        self._deferring_prefix = f"{self._deferring}.".encode()
        self._pending: dict[bytes, asyncio.Future[Reply]] = {}
        self._ended: OrderedDict[bytes, bool] = OrderedDict()  # by id, whether it was answered
        self.metrics = Metrics()
        self._counts = self.metrics.counts
        self._model: str | None = None
        self._accepts: str | None = None
        self._answered_at: float | None = None
        self._pid: int | None = None
        self._loop: asyncio.AbstractEventLoop
        self._next_look: asyncio.TimerHandle
        self._requests: Requests
        self._replies: Replies
        self._log: ReplyLog

    def start(self) -> None:
        """Make the Kafka clients and begin to connect; returns at once.

        Raises:
            ConfigError: librdkafka refuses a property.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._requests = Requests(self._settings, self._undelivered, self._doubt)
            self._replies = Replies(
                self._settings,
                (self._prefix, self._deferring_prefix),
                self._requests.look_up,
                self._arrived,
                self._lost,
            )
            self._log = ReplyLog(self._settings)
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error, self._settings.kafka) from None
        self._pid = os.getpid()
        self._requests.start()
        self._replies.start()
        self._show()

    async def close(self) -> None:
        """Stop both threads; requests that still wait fail with ``ReplyLost``."""
        if self._pid is None:
            return
        self._next_look.cancel()
        self._replies.stop()
        self._fail_pending(
            ReplyLost, "the service is stopping; whether the request was scored is unknown"
        )
        self._requests.stop()
        deadline = time.monotonic() + _CLOSE
        await self._log.close()
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

    async def call(
        self,
        payload: bytes,
        headers: Sequence[Header],
        timeout: float,
        sent: Callable[[], None] | None = None,
    ) -> Reply:
        """Send a request and wait for its reply.

        Args:
            payload: the record's value.
            headers: headers from the caller, allow-listed; ours are added after them and win.
            timeout: seconds to wait; also the request's deadline.
            sent: called once the payload is in the producer's queue, which has its own bound.

        Raises:
            NotReady: there is no broker, or the replies are not assigned; nothing was sent.
            Overloaded: too much is pending; nothing was sent.
            RequestTooLarge: the client or the topic takes no record of this size.
            DeliveryFailed: the request did not reach its topic.
            ReplyLost: the part of the replies topic that was to be read is gone.
            ReplyTimeout: no reply in time.
        """
        place = self._place(self._instance, timeout)
        key = place.correlation_id.encode()
        future = self._pending[key] = self._loop.create_future()
        try:
            self._send(place, payload, headers)
            del payload  # librdkafka has its copy; many large ones may be waiting
            if sent is not None:
                sent()
            return await self._reply(place, future, timeout)
        except ReplyTimeout:
            self._counts.timeouts.inc()
            raise
        finally:
            self._end(key)

    async def submit(
        self,
        payload: bytes,
        headers: Sequence[Header],
        lifetime: float,
        wait: float,
        timeout: float,
        sent: Callable[[], None] | None = None,
    ) -> Reply | Place:
        """Send a request, see it stored, and wait for its reply for a while.

        Args:
            payload: the record's value.
            headers: as in ``call``.
            lifetime: seconds until the request's deadline.
            wait: seconds to wait for the reply once the request is stored; may be 0.
            timeout: seconds to wait until it is stored.
            sent: as in ``call``.

        Returns:
            The reply, or where any process will find it.

        Raises:
            NotReady, Overloaded, RequestTooLarge, DeliveryFailed, ReplyLost: as ``call``.
        """
        place = self._place(self._deferring, lifetime)
        key = place.correlation_id.encode()
        future = self._pending[key] = self._loop.create_future()
        stored = self._loop.create_future()
        try:
            self._send(place, payload, headers, functools.partial(_set, stored))
            del payload
            if sent is not None:
                sent()
            # Refused requests have their exception in `future`.
            done, _ = await asyncio.wait(
                (stored, future), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise DeliveryFailed(
                    "Kafka has not said in time that it has the request; whether it has is unknown"
                )
            if not stored.done():
                future.result()  # or what it was refused with
            if wait > 0:
                # The request is safe, and its reply will be found, whatever becomes of this wait.
                with contextlib.suppress(ReplyTimeout, ReplyLost):
                    return await self._reply(place, future, wait)
            return place
        finally:
            self._requests.forget(key)
            self._end(key)

    async def find(self, place: Place) -> Reply | Place:
        """Look for a reply on the topic itself, whoever asked for it; see ``ReplyLog.find``."""
        if not self.ready:
            raise NotReady("not connected to Kafka")
        return await self._log.find(place)

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
            "seconds_since_reply": None
            if self._answered_at is None
            else round(time.monotonic() - self._answered_at, 1),
            "pending": len(self._pending),
            "max_pending": self._settings.facade.max_pending,
            "counts": self._counts.here(),
        }

    def _place(self, instance: str, lifetime: float) -> Place:
        if os.getpid() != self._pid:
            raise RuntimeError("started in another process: a Kafka client survives no fork")
        next_offset = self._replies.next_offset
        if not self._replies.ready or next_offset is None:
            raise NotReady("not connected to Kafka")
        if len(self._pending) >= self._settings.facade.max_pending:
            raise Overloaded(f"{len(self._pending)} requests are waiting already")
        return Place(
            f"{instance}.{secrets.token_hex(16)}",
            self._replies.partition,
            next_offset,
            int((time.time() + lifetime) * 1000),
        )

    def _send(
        self,
        place: Place,
        payload: bytes,
        headers: Sequence[Header],
        stored: Callable[[], None] | None = None,
    ) -> None:
        correlation_id = place.correlation_id.encode()
        record_headers = [
            *headers,
            (REPLY_TOPIC, self._replies.topic.encode()),
            (REPLY_PARTITION, str(place.partition).encode()),
            (CORRELATION_ID, correlation_id),
            (DEADLINE, str(place.until).encode()),
        ]
        try:
            self._requests.send(
                correlation_id,
                payload,
                record_headers,
                at_once=len(self._pending) <= _FEW,
                stored=stored and functools.partial(self._on_loop, stored),
            )
        except BufferError:
            raise Overloaded("the queue of requests to Kafka is full") from None
        except KafkaException as error:
            raise self._failure(error.args[0]) from None
        self._counts.requests.inc()

    async def _reply(self, place: Place, future: asyncio.Future[Reply], timeout: float) -> Reply:
        # PERF: a tenth of the facade's time less than asyncio.timeout().
        timer = self._loop.call_later(timeout, self._expire, place, future, timeout)
        try:
            return await future
        finally:
            timer.cancel()

    def _failure(self, error: KafkaError) -> Exception:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return RequestTooLarge("the payload is larger than the requests topic takes")
        self._counts.delivery_failures.inc()
        return DeliveryFailed(f"the request could not be handed to Kafka: {error.name()}")

    def _end(self, key: bytes) -> None:
        future = self._pending.pop(key)
        if key.startswith(self._deferring_prefix):
            return  # its reply may come in an hour
        self._ended[key] = _answered(future)
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    # ---- on the event loop, asked for by the threads ----

    def _resolve(self, replies: list[tuple[bytes, Reply]]) -> None:
        self._answered_at = time.monotonic()
        for correlation_id, reply in replies:
            future = self._pending.get(correlation_id)
            if future is not None and not future.done():
                future.set_result(reply)
                self._counts.replies.inc()
                self._model = reply.model or self._model
                self._accepts = reply.accepts or self._accepts
                continue
            answered = self._ended.get(correlation_id)
            if future is not None:
                answered = _answered(future)
            if answered:
                self._counts.duplicate.inc()
            elif correlation_id.startswith(self._deferring_prefix):
                self._counts.deferred.inc()
            elif answered is None:
                self._counts.orphan.inc()
            else:
                self._counts.late.inc()

    def _show(self) -> None:
        # Every second, and not as they change: no request pays for it.
        self.metrics.pending.set(len(self._pending))
        self.metrics.ready.set(self.ready)
        self._next_look = self._loop.call_later(_LOOK_EVERY, self._show)

    def _expire(self, place: Place, future: asyncio.Future[Reply], timeout: float) -> None:
        if not future.done():
            future.set_exception(
                ReplyTimeout(
                    f"no answer within {timeout:.3g} s; whether the request was or will be scored "
                    "is unknown",
                    place,
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
        self._counts.lost.inc(len(self._pending))
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
        self._counts.foreign.inc(foreign)
        self._counts.unreadable.inc(unreadable)
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
        raise wrong_property(error, settings.kafka) from None


def _answered(future: asyncio.Future[Reply]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
