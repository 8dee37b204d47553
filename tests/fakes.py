"""Stand-ins for what a unit test leaves out: librdkafka's clients, a cluster, a clock, a plugin."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, Message, TopicPartition

from stream_scorer.plugins import Plugin
from stream_scorer.protocol import Answer, Request, Signature, Status

REQUESTS: Final = "score-requests"
CREATE_TIME: Final = 1
SIGNATURE: Final = Signature.of("wine; version=1", ("application/json", "text/csv"))

Headers = Sequence[tuple[str, str | bytes | None]]
Report = Callable[[KafkaError | None, Message | None], None]


def message(
    partition: int,
    offset: int,
    value: bytes | None = b"{}",
    headers: Headers = (("content-type", b"application/json"),),
    *,
    key: bytes | None = None,
    timestamp: int = 0,
) -> Message:
    """A record of the requests topic as it is consumed; ``timestamp`` in ms."""
    return Message(
        topic=REQUESTS,
        partition=partition,
        offset=offset,
        key=key,
        value=value,
        headers=[*headers],
        timestamp=(CREATE_TIME, timestamp),
    )


def error_message(error: KafkaError, partition: int = -1) -> Message:
    """What ``poll`` returns for an error of the consumer, or of one partition."""
    return Message(topic=REQUESTS, partition=partition, offset=-1001, error=error)


def request(
    partition: int = 0,
    offset: int = 0,
    payload: bytes | None = b"{}",
    content_type: str | None = "application/json",
    **fields: Any,
) -> Request:
    """A request whose headers have been read."""
    given: dict[str, Any] = {"key": None, "headers": [], "content_type": content_type, **fields}
    return Request(REQUESTS, partition, offset, payload=payload, **given)


class FakeClock:
    """A clock that stands still until it is moved; call it for the time in seconds."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


@dataclass(slots=True)
class Sent:
    """A record that was given to ``FakeProducer``."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    report: Report = field(repr=False)

    def header(self, name: str) -> bytes | None:
        """The last value of a header."""
        return dict(self.headers).get(name)


class FakeProducer:
    """``confluent_kafka.Producer`` without a broker: takes records, and delivers them when polled.

    ``outcome`` decides each record's delivery: ``None`` is success. ``room`` is how many records
    the queue holds. While ``stalled`` nothing is delivered, as when no broker answers.
    """

    def __init__(self, properties: dict[str, Any] | None = None) -> None:
        self.properties = properties or {}
        self.sent: list[Sent] = []
        self.outcome: Callable[[Sent], KafkaError | None] = lambda _: None
        self.refusal: Callable[[Sent], KafkaError | None] = lambda _: None
        self.room = 100_000
        self.stalled = False
        self.flushes: list[float] = []
        self.purged = False
        self.batch = 0
        """How many records were sent together with the one whose outcome is asked for."""
        self._queue: deque[Sent] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def produce(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int = -1,
        on_delivery: Report | None = None,
        headers: Headers = (),
    ) -> None:
        on_delivery = on_delivery or self.properties.get("on_delivery")
        assert on_delivery is not None, "every record needs a delivery report"
        assert partition >= 0, "the partition is chosen explicitly"
        plain = []
        for name, held in headers:
            assert not isinstance(held, str), f"header {name}: text is cut at a NUL by the client"
            plain.append((name, held or b""))
        record = Sent(topic, partition, key, value, plain, on_delivery)
        if (refusal := self.refusal(record)) is not None:
            raise KafkaException(refusal)
        if len(self._queue) >= self.room:
            raise BufferError("Local: Queue full")
        self.sent.append(record)
        self._queue.append(record)

    def poll(self, timeout: float = -1) -> int:
        if self.stalled:
            return 0
        # Reports may produce more; those wait for the next poll.
        self.batch = served = len(self._queue)
        for _ in range(served):
            self.deliver_one()
        return served

    def flush(self, timeout: float = -1) -> int:
        self.flushes.append(timeout)
        if timeout >= 0.001:
            self.poll()
        return len(self._queue)

    def deliver_one(self) -> None:
        """Serve the delivery report of the record that waits longest."""
        record = self._queue.popleft()
        error = self.outcome(record)
        if error is not None or not self.properties.get("delivery.report.only.error"):
            record.report(error, Message(topic=record.topic))

    def purge(self) -> None:
        self.purged = True
        self._queue.clear()

    def to(self, topic: str) -> list[Sent]:
        """What was sent to a topic, in order."""
        return [record for record in self.sent if record.topic == topic]


Rebalance = Callable[[Any, list[TopicPartition]], None]
Event = Message | Callable[[], None]


class FakeConsumer:
    """``confluent_kafka.Consumer`` without a broker: returns what it is fed.

    Fed callables run inside the ``poll`` or ``consume`` that reaches them, as rebalances do.
    Messages of paused partitions stay where they are. ``on_idle`` runs in each ``poll`` that finds
    nothing, with its timeout.
    """

    def __init__(self, properties: dict[str, Any] | None = None) -> None:
        self.properties = properties or {}
        self.subscribed: list[str] = []
        self.owned: set[int] = set()
        self.paused: set[int] = set()
        self.sought: list[tuple[int, int]] = []
        self.commits: list[dict[int, int]] = []
        self.positions: dict[int, int] = {}
        """The committed offset of each partition."""
        self.waited: list[dict[int, int]] = []
        """What was committed each time that the broker was asked for it after a commit."""
        self.beginnings: dict[int, int] = {}
        """The first offset of each partition, where it is not 0."""
        self.commit_error: KafkaError | None = None
        self.consume_calls: list[tuple[int, float]] = []
        self.polls: list[float] = []
        self.member = ""
        """Who it is in its group, while it is in one."""
        self.rebalancing = False
        """Whether a rebalance is under way, which puts its leave off."""
        self.closed = False
        self.on_idle: Callable[[float], None] = lambda _: None
        self._fatal = False
        self._queue: deque[Event] = deque()
        self._on_assign: Rebalance | None = None
        self._on_revoke: Rebalance | None = None
        self._on_lost: Rebalance | None = None

    def feed(self, *events: Event) -> None:
        """Have these come next, in order."""
        self._queue.extend(events)

    def waiting(self) -> int:
        """How many messages have not been returned."""
        return sum(isinstance(event, Message) for event in self._queue)

    def assign_now(self, *partitions: int) -> None:
        """Give these partitions to the consumer, as within a ``poll``."""
        assert self._on_assign is not None, "not subscribed"
        self.owned.update(partitions)
        self._on_assign(self, _places(partitions))

    def revoke_now(self, *partitions: int) -> None:
        """Take these partitions away; offsets can still be committed in the callback."""
        assert self._on_revoke is not None, "not subscribed"
        self._on_revoke(self, _places(partitions))
        self.owned.difference_update(partitions)
        self.paused.difference_update(partitions)

    def lose_now(self, *partitions: int) -> None:
        """Tell that these partitions are another's already."""
        assert self._on_lost is not None, "not subscribed"
        self.owned.difference_update(partitions)
        self.paused.difference_update(partitions)
        self._on_lost(self, _places(partitions))

    def subscribe(
        self,
        topics: list[str],
        on_assign: Rebalance,
        on_revoke: Rebalance,
        on_lost: Rebalance,
    ) -> None:
        self.subscribed = topics
        self.member = "member-1"
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost

    def poll(self, timeout: float = -1) -> Message | None:
        assert not self.closed
        self.polls.append(timeout)
        found = self._next(1)
        if not (self.subscribed or self.rebalancing or self._newer or self._fatal):
            self.member = ""
        if not found:
            self.on_idle(timeout)
        return found[0] if found else None

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        assert not self.closed
        self.consume_calls.append((num_messages, timeout))
        return self._next(num_messages)

    @property
    def _newer(self) -> bool:
        return self.properties.get("group.protocol") == "consumer"

    def _next(self, most: int) -> list[Message]:
        found: list[Message] = []
        later: deque[Event] = deque()
        while self._queue and len(found) < most:
            event = self._queue.popleft()
            if not isinstance(event, Message):
                event()
            elif event.partition() in self.paused:
                later.append(event)
            else:
                error = event.error()
                self._fatal |= error is not None and error.code() == KafkaError._FATAL
                found.append(event)
        self._queue.extendleft(reversed(later))
        return found

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused.update(place.partition for place in partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.paused.difference_update(place.partition for place in partitions)

    def seek(self, place: TopicPartition) -> None:
        assert place.partition not in self.paused
        self.sought.append((place.partition, place.offset))

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        assert not self.closed
        assert asynchronous, "a synchronous commit never returns where the broker is gone"
        assert all(place.topic == REQUESTS and place.offset >= 0 for place in offsets)
        self.commits.append({place.partition: place.offset for place in offsets})
        # As the client answers a commit of nothing.
        nothing = None if offsets else KafkaError(KafkaError._NO_OFFSET, "No offset stored")
        error = self.commit_error or nothing
        if error is None:
            self.positions |= self.commits[-1]
        self._queue.appendleft(lambda: self.properties["on_commit"](error, offsets))

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        assert timeout > 0
        found = _places(place.partition for place in places)
        for place in found:
            place.offset = self.positions.get(place.partition, OFFSET_INVALID)
        if self.commits:
            self.waited.append({each.partition: each.offset for each in found if each.offset >= 0})
        return found

    def get_watermark_offsets(
        self, place: TopicPartition, timeout: float, cached: bool
    ) -> tuple[int, int]:
        assert timeout > 0
        assert not cached, "what the client remembers of a partition that came is nothing"
        first = self.beginnings.get(place.partition, 0)
        return first, first + 100

    def unsubscribe(self) -> None:
        def revoke() -> None:
            if self.owned:
                self.revoke_now(*sorted(self.owned))

        self.subscribed = []
        if self._fatal:
            # It tells of no revocation, and never leaves.
            raise KafkaException(KafkaError(KafkaError._FATAL, "Failed to remove subscription"))
        self._queue.append(revoke)

    def memberid(self) -> str | None:
        assert not self.closed
        return self.member or None

    def close(self) -> None:
        assert not self.subscribed, "close() in the middle of a rebalance may hang"
        assert self._fatal or not self.owned, "closed before the revocation was told"
        assert self._fatal or self._newer or not self.member, "closed before the group was left"
        self.closed = True


def _places(partitions: Iterable[int]) -> list[TopicPartition]:
    return [TopicPartition(REQUESTS, number) for number in partitions]


class FakeTopics:
    """The cluster's topics: ``known`` is what was seen, ``cluster`` what a look-up would find."""

    def __init__(self, known: dict[str, int], cluster: dict[str, int] | None = None) -> None:
        self.known = dict(known)
        self.cluster = dict(known) if cluster is None else dict(cluster)
        self.looked_up: list[str] = []
        self.largest_request = 0

    def partitions(self, topic: str) -> int:
        return self.known.get(topic, 0)

    def look_up(self, topic: str) -> int:
        self.looked_up.append(topic)
        self.known[topic] = self.cluster.get(topic, 0)
        return self.known[topic]


class EchoScorer:
    """Answers every request with its payload; ``before`` runs first, in the scoring thread."""

    def __init__(self, before: Callable[[Sequence[Request]], None] = lambda _: None) -> None:
        self.before = before
        self.turns: list[list[Request]] = []

    def score(self, requests: Sequence[Request]) -> list[Answer]:
        self.turns.append(list(requests))
        self.before(requests)
        return [
            Answer(item, Status.OK, "application/json", item.payload or b"") for item in requests
        ]


class EchoPlugin(Plugin[Any, Any, Any]):
    """Decodes and predicts by returning what it gets, noting the size of each batch.

    A test replaces a step by a function of the same arguments, save the model.
    """

    content_types = ("application/json", "image/*")

    def __init__(
        self,
        *,
        decode: Callable[[bytes, str], Any] = lambda payload, _: payload,
        predict: Callable[[Sequence[Any]], Any] = list,
        encode: Callable[[Any, str | None], Any] = lambda body, _: (body, "application/json"),
    ) -> None:
        self._decode = decode
        self._predict = predict
        self._encode = encode
        self.batches: list[int] = []
        self.models: list[Any] = []

    def decode(self, payload: bytes, content_type: str) -> Any:
        return self._decode(payload, content_type)

    def predict(self, model: Any, instances: Sequence[Any]) -> Any:
        self.batches.append(len(instances))
        self.models.append(model)
        return self._predict(instances)

    def encode(self, prediction: Any, accept: str | None) -> Any:
        return self._encode(prediction, accept)
