"""The requests' consumer: what is there is taken as a turn, and partitions come and go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_scorer.background import BackgroundThread
from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.kafka.clients import (
    BrokerTrouble,
    consumer_properties,
    is_classic,
    wrong_property,
)
from stream_scorer.kafka.messages import read_request
from stream_scorer.kafka.refusals import right_missing
from stream_scorer.protocol import Request

_log = logging.getLogger(__name__)

STATISTICS_EVERY: Final = 5.0

_COMMITTED_TIMEOUT: Final = 30.0

_BEGINNINGS_TIMEOUT: Final = 2.0
_BEGINNINGS_PAUSE: Final = 5.0

LEAVE_TIME: Final = 1.0
"""Seconds for a last word to the broker, though all the time there was is used up."""

_LEAVE_POLL: Final = 0.05

CHUNK: Final = 256
"""Messages asked for at once, so that a turn ends near its bound in bytes."""

_STATIC_MEMBER_FENCED: Final = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()


class ConsumerFailed(OperationError):
    """The consumer cannot go on; the process must start anew from the committed offsets."""


class Fenced(OperationError):
    """Another process took over under the same ``worker.instance_id`` and slot."""

    def __init__(self, member_id: str) -> None:
        super().__init__(
            f"another process took over as {member_id!r}; if it is not our successor, "
            "worker.instance_id is the same on two hosts"
        )


@dataclass(slots=True)
class Turn:
    """What was taken at once, and which assignment of each partition it was taken under.

    ``changes`` is how often partitions had come and gone by then.
    """

    requests: Sequence[Request]
    epochs: dict[int, int]
    changes: int = -1


@dataclass(frozen=True, slots=True)
class AssignmentListener:
    """Whom to tell, within ``take``, ``keep_alive`` and ``close``; partitions by number.

    ``revoked`` comes while the partitions are still ours: offsets can be committed. After
    ``lost`` they are another's already: nothing may be committed.
    """

    assigned: Callable[[Sequence[int]], None]
    revoked: Callable[[Sequence[int]], None]
    lost: Callable[[Sequence[int]], None]


class RequestConsumer:
    """Takes requests as a member of the worker group.

    Every method must be called by one thread, the owner: librdkafka's Python client starves
    others.

    Args:
        settings: the settings.
        listener: told of partitions that come and go.

    Raises:
        ConfigError: librdkafka refuses a property.
    """

    def __init__(self, settings: Settings, listener: AssignmentListener) -> None:
        self._settings = settings
        self._listener = listener
        self._epochs: dict[int, int] = {}
        self._changes = 0
        self._paused: set[int] = set()
        # A partition that goes while it is paused is paused still when it comes back.
        self._to_resume: set[int] = set()
        # Partitions that came, of which it was not asked yet whether anything is committed; and
        # those of which it was, and is to be again.
        self._came: set[int] = set()
        self._unknown: set[int] = set()
        self._ask_again_at = 0.0
        # What the client would give next; its own position() knows nothing of a seek.
        self._next: dict[int, int] = {}
        self._held: list[Message] = []
        self.lag = 0
        """Requests behind the end of our partitions, at most ``STATISTICS_EVERY`` seconds ago."""
        self.commit_failed = False
        """Whether a commit has failed since this was last set to false."""
        properties: dict[str, Any] = {
            **consumer_properties(settings),
            "group.id": settings.worker.group,
            # A new group starts at the beginning: the first requests must not be lost.
            "auto.offset.reset": "earliest",
            "error_cb": BrokerTrouble(),
            "on_commit": self._on_commit,
            "statistics.interval.ms": int(STATISTICS_EVERY * 1000),
            "stats_cb": self._on_statistics,
        }
        self._classic = is_classic(properties)
        # In the newer protocol nothing tells a member of an assignment that is empty from the
        # start (librdkafka 2.16.0), though it belongs to its group as any other.
        self._told_of_membership = self._classic
        if self._classic:
            # Exactly once, everything is given up at a rebalance. Otherwise a static member that
            # slept through its session may come back, with a generation that the coordinator takes,
            # before it tells us that its partitions were another's; and one that dies between the
            # two halves of a cooperative rebalance leaves partitions that nobody owns.
            properties["partition.assignment.strategy"] = (
                "roundrobin" if settings.worker.delivery == "exactly_once" else "cooperative-sticky"
            )
        if settings.worker.delivery == "exactly_once":
            # A successor of the same name has the partitions at once; and the coordinator checks
            # the generation of offsets in a transaction only where there is such a name.
            properties["group.instance.id"] = settings.member_id
            properties["isolation.level"] = "read_committed"
        try:
            self._consumer = Consumer(properties)
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error, settings.kafka) from None

    def subscribe(self) -> None:
        """Join the group."""
        self._consumer.subscribe(
            [self._settings.topics.requests],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def take(self, timeout: float, most: int | None = None) -> Turn:
        """Wait for a first request, then take what else is there, without waiting for more.

        Args:
            timeout: seconds to wait for the first.
            most: the most requests to take, ``worker.max_turn`` where not given.

        Returns:
            The requests, none where none came; about ``worker.max_turn_bytes`` at the most: no
            more than a chunk or the fetch queue over it.

        Raises:
            ConsumerFailed: the client reported an error it cannot recover from.
            Fenced: another process has the same slot.
        """
        self._resume()
        requests: list[Request] = []
        size = 0
        worker = self._settings.worker
        messages = self._held or self._poll(timeout)
        self._held = []
        while messages:
            for message in messages:
                if (request := self._read(message)) is not None:
                    requests.append(request)
                    size += len(request.payload or b"")
            room = (most or worker.max_turn) - len(requests)
            if room <= 0 or size >= worker.max_turn_bytes:
                break
            epochs = dict(self._epochs)
            messages = self._consumer.consume(min(room, CHUNK), 0)
            if self._epochs != epochs:
                # Partitions went or came in that call: what was taken of those that went is
                # another's now. None of them can be back already: that takes round trips, and
                # the call did not wait. Nor was one gone back in, unless the commit failed that a
                # revocation waited for.
                if any(self._epochs.get(p, epoch) != epoch for p, epoch in epochs.items()):
                    raise ConsumerFailed("a partition was assigned or gone back in within one call")
                requests = [item for item in requests if item.partition in self._epochs]
                messages = [
                    item
                    for item in messages
                    # A fatal error comes once, and of no partition.
                    if item.error() is not None or item.partition() in self._epochs
                ]
        return Turn(requests, dict(self._epochs), self._changes)

    def keep_alive(self, timeout: float) -> None:
        """Stay in the group while busy: poll with every partition paused.

        Partitions may be assigned, revoked or lost meanwhile.

        Args:
            timeout: seconds to wait; the time between looks at what one is busy with.
        """
        # Again in each call: partitions that come while we are busy have to be paused too.
        if running := self._epochs.keys() - self._paused:
            self._consumer.pause(self._places(running))
            self._paused |= running
            self._to_resume |= running
        for message in self._poll(timeout):
            # One can still arrive, of a partition that was assigned within this very call.
            self._held.append(message)
            if message.error() is None:
                self._next[message.partition() or 0] = (message.offset() or 0) + 1

    @property
    def assigned(self) -> int:
        """How many partitions are ours."""
        return len(self._epochs)

    @property
    def paused(self) -> int:
        """How many of them are paused, since a turn takes long."""
        return len(self._paused)

    def still_owned(self, turn: Turn, partition: int) -> bool:
        """Whether a partition has been ours without a break since the turn was taken."""
        # PERF: asked for every answer, and mostly nothing has changed.
        if turn.changes == self._changes:
            return partition in turn.epochs
        return self._epochs.get(partition, -1) == turn.epochs.get(partition)

    def commit(self, offsets: dict[int, int], *, timeout: float = 0.0) -> None:
        """Commit the next offsets to read, by partition.

        A commit that fails is logged and told by ``commit_failed``, not raised: it can be made
        again, or the requests are read again.

        Args:
            offsets: the next offset of each partition.
            timeout: seconds to wait until the broker has it; 0 not to wait.
        """
        topic = self._settings.topics.requests
        positions = [TopicPartition(topic, number, offset) for number, offset in offsets.items()]
        try:
            self._consumer.commit(offsets=positions, asynchronous=True)
            # Not by a synchronous commit, which has no timeout and never returns where the broker
            # is gone. A question on the same connection is answered after what came before it.
            if timeout and any(
                place.offset < offsets[place.partition]
                for place in self._consumer.committed(positions, timeout)
            ):
                self.commit_failed = True
        except KafkaException as error:
            self._on_commit(error.args[0], positions)

    def beginnings(self) -> dict[int, int]:
        """Partitions of which nothing was ever committed, with the first offset that is there.

        That is where they are read from, so it can be committed: without it, whoever looks at the
        group from outside cannot tell how far behind it is, and an autoscaler neither whether to
        start the first worker nor whether to stop the last. To be asked between ``take`` and the
        delivery of what was taken: nothing of a partition that came can have been committed then
        but by its owners before us, and they cannot any more.

        Told once for each time that a partition comes, or later where the broker does not answer.
        """
        came = self._came & self._epochs.keys()
        self._came.clear()
        if monotonic() >= self._ask_again_at:
            # Of what was read meanwhile the answers are committed, or about to be.
            came |= (self._unknown & self._epochs.keys()) - self._next.keys()
            self._unknown.clear()
        first: dict[int, int] = {}
        if not came:
            return first
        deadline = monotonic() + _BEGINNINGS_TIMEOUT
        try:
            for place in self._consumer.committed(self._places(came), _BEGINNINGS_TIMEOUT):
                if place.error is not None:
                    raise KafkaException(place.error)
                if place.offset < 0:
                    left = max(0.1, deadline - monotonic())
                    ends = self._consumer.get_watermark_offsets(place, left, cached=False)
                    first[place.partition] = ends[0]
        except KafkaException as error:
            _log.info("where partitions begin is not known: %s", error.args[0].str())
            self.ask_again(came - first.keys())
        return first

    def ask_again(self, partitions: Iterable[int]) -> None:
        """Let ``beginnings`` tell of partitions once more, as long as nothing is read of them."""
        self._unknown.update(partitions)
        self._ask_again_at = monotonic() + _BEGINNINGS_PAUSE

    def group_metadata(self) -> object:
        """Who we are in the group as it is now, for offsets in a transaction."""
        return self._consumer.consumer_group_metadata()

    def rewind(self, first: dict[int, int]) -> None:
        """Read partitions again from their committed offsets; what was taken of them is not owned.

        Args:
            first: the partitions, with the offset to take where nothing was ever committed.

        Raises:
            ConsumerFailed: the committed offsets are not known, or cannot be gone back to.
        """
        places = self._places(first.keys() & self._epochs.keys())
        if not places:
            return
        try:
            for place in self._consumer.committed(places, _COMMITTED_TIMEOUT):
                if place.error is not None:
                    raise KafkaException(place.error)
                if place.offset < 0:
                    place.offset = first[place.partition]
                self._next[place.partition] = place.offset
                # What is paused is sought for when it is resumed.
                if place.partition not in self._paused:
                    self._consumer.seek(place)
            self._changes += 1
            again = {place.partition for place in places}
            self._epochs |= dict.fromkeys(again, self._changes)
            self._held = [item for item in self._held if item.partition() not in again]
        except KafkaException as error:
            failure: KafkaError = error.args[0]
            raise ConsumerFailed(
                self._right_missing(failure) or f"cannot go back: {failure.str()}"
            ) from None

    def close(self, timeout: float = 0.0) -> None:
        """Leave the group; ``revoked`` is told first, unless the client has failed for good.

        Args:
            timeout: seconds that a rebalance under way has to come to its end, and the broker to
                answer; ``LEAVE_TIME`` at least. After them our session has to run out.
        """
        # Not by close() alone: an assignment that comes within it makes us leave before we are
        # told of the revocation, so that no commit is taken, and close() may never return, with
        # the interpreter's lock in its hands (librdkafka 2.16.0, its issues 4041 and 4527). And
        # not before the client has left: in mid-rebalance it puts that off, and a close() then
        # leaves the coordinator with a member that is gone, for a session.
        ended = False
        try:
            self._consumer.unsubscribe()
        except KafkaException as error:
            # What ended it counts. It has given up its partitions by itself, tells of no revocation
            # and does not leave any more.
            _log.info("the group is not left: %s", error.args[0].str())
            ended = True
        deadline = monotonic() + max(LEAVE_TIME, timeout)
        self._poll(0)
        while not ended and (self._epochs or self._has_joined()) and monotonic() < deadline:
            self._poll(_LEAVE_POLL)
        self._held = []
        # It waits for commits under way, and does so for good where the broker is gone.
        closing: BackgroundThread[None, None] = BackgroundThread(
            lambda _: self._consumer.close(), "closing"
        )
        try:
            closing.submit(None).result(max(LEAVE_TIME, deadline - monotonic()))
        except NotYet:
            _log.warning("the broker does not answer: left the group without telling it")

    def _has_joined(self) -> bool:
        # In the newer protocol a member has its name from the start, and for good.
        return self._classic and bool(self._consumer.memberid())

    def _places(self, partitions: Iterable[int]) -> list[TopicPartition]:
        topic = self._settings.topics.requests
        return [TopicPartition(topic, number) for number in partitions]

    def _resume(self) -> None:
        self._paused = set()
        resuming = self._to_resume & self._epochs.keys()
        if not resuming:
            return
        self._to_resume -= resuming
        self._consumer.resume(self._places(resuming))
        # Otherwise the client fetches again after most of a second (measured with 2.16.0).
        for place in self._places(resuming & self._next.keys()):
            place.offset = self._next[place.partition]
            try:
                self._consumer.seek(place)
            except KafkaException as error:
                # It is about to go, of which we are told in a poll.
                _log.info("partition %d: %s", place.partition, error.args[0].str())

    def _poll(self, timeout: float) -> list[Message]:
        message = self._consumer.poll(timeout)
        # poll() returns after the first message: it is of the assignment as it stands.
        return [] if message is None else [message]

    def _read(self, message: Message) -> Request | None:
        error = message.error()
        if error is not None:
            self._classify(error)
            return None
        request = read_request(message, self._settings.topics.default_content_type)
        self._next[request.partition] = request.offset + 1
        return request

    def _classify(self, error: KafkaError) -> None:
        # A member that was fenced is told so by this code, without the flag.
        if error.fatal() or error.code() == KafkaError._FATAL:
            # What it stands for is in the text alone.
            if _STATIC_MEMBER_FENCED in error.str():
                raise Fenced(self._settings.member_id)
            raise ConsumerFailed(error.str())
        # Told once, and nothing comes from then on: to go on would be to hang in silence.
        if (missing := self._right_missing(error)) is not None:
            raise ConsumerFailed(missing)
        if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            _log.error("no requests: %s", error.str())
        elif error.code() != KafkaError._PARTITION_EOF:
            _log.warning("consumer: %s", error.str())

    def _right_missing(self, error: KafkaError) -> str | None:
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return right_missing(f"READ on group {self._settings.worker.group}")
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            return right_missing(f"READ on topic {self._settings.topics.requests}")
        return None

    def _on_commit(self, error: KafkaError | None, _: list[TopicPartition]) -> None:
        if error is not None:
            self.commit_failed = True
            _log.info("commit failed: %s", error.str())

    def _on_statistics(self, text: str) -> None:
        statistics = orjson.loads(text)
        topic = statistics["topics"].get(self._settings.topics.requests, {})
        partitions = topic.get("partitions", {})
        self.lag = sum(
            self._behind(number, partitions.get(str(number), {})) for number in self._epochs
        )
        group_found = statistics.get("cgrp", {}).get("state") == "up"
        if group_found and not self._told_of_membership and not self._epochs:
            self._told_of_membership = True
            self._listener.assigned([])

    def _behind(self, number: int, partition: dict[str, int]) -> int:
        # Not its consumer_lag, which knows nothing of offsets that a transaction committed.
        # Numbers below 0 mean that they are not known.
        places = (partition.get("committed_offset", -1), partition.get("lo_offset", -1))
        begin = self._next.get(number, max(places))
        return max(0, partition.get("hi_offset", -1) - begin) if begin >= 0 else 0

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [item.partition for item in partitions]
        self._changes += 1
        self._epochs |= dict.fromkeys(numbers, self._changes)
        self._came.update(numbers)
        self._told_of_membership = True
        _log.info("assigned partitions %s", numbers)
        self._listener.assigned(numbers)

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [item.partition for item in partitions]
        _log.info("revoked partitions %s", numbers)
        self._listener.revoked(numbers)
        self._drop(numbers)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [item.partition for item in partitions]
        _log.warning("lost partitions %s", numbers)
        self._told_of_membership = False
        self._drop(numbers)
        self._listener.lost(numbers)

    def _drop(self, numbers: list[int]) -> None:
        self._changes += 1
        for number in numbers:
            self._epochs.pop(number, None)
            self._next.pop(number, None)
            self._paused.discard(number)
        self._held = [item for item in self._held if item.partition() not in numbers]
