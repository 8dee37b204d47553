"""One function a bug; each puts a mistake into this process that breaks the promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from confluent_kafka import TopicPartition

from stream_scorer.kafka.at_least_once import AtLeastOnce
from stream_scorer.kafka.consumer import RequestConsumer, Turn
from stream_scorer.kafka.exactly_once import ExactlyOnce
from stream_scorer.kafka.producer import AnswerProducer
from stream_scorer.protocol import Answer


def no_rewind() -> None:
    """After an abort it goes on behind the requests that were not answered."""

    def stay(self: RequestConsumer, first: dict[int, int]) -> None:
        pass

    _replace(RequestConsumer, "rewind", stay)


def offsets_outside() -> None:
    """Offsets are committed beside the transaction."""

    def commit(self: ExactlyOnce, next_offsets: dict[int, int], metadata: object) -> None:
        self._consumer.commit(next_offsets, timeout=10)

    _replace(ExactlyOnce, "_send_offsets", commit)


def no_ownership_check() -> None:
    """Partitions that went while a turn was scored are answered all the same."""

    def always(self: RequestConsumer, turn: Turn, partition: int) -> bool:
        return True

    _replace(RequestConsumer, "still_owned", always)


def early_acknowledgement() -> None:
    """Offsets are committed once the answers are queued, at least once."""

    def delivered(self: AnswerProducer, timeout: float = 0.0) -> int:
        return 0

    commit = RequestConsumer.commit

    def commit_and_wait(
        self: RequestConsumer, offsets: dict[int, int], *, timeout: float = 10.0
    ) -> None:
        commit(self, offsets, timeout=timeout)

    _replace(AnswerProducer, "in_flight", delivered)
    _replace(AnswerProducer, "flush", delivered)
    # So that a death right after a commit cannot come before it: the first one may hold no more
    # than where the partitions begin.
    _replace(RequestConsumer, "commit", commit_and_wait)


def client_position() -> None:
    """The client's own position is committed: what it handed out, not what is answered."""
    send_offsets = ExactlyOnce._send_offsets

    def send_position(self: ExactlyOnce, next_offsets: dict[int, int], metadata: object) -> None:
        topic = self._settings.topics.requests
        places = [TopicPartition(topic, partition) for partition in next_offsets]
        found = self._consumer._consumer.position(places)
        send_offsets(self, {place.partition: place.offset for place in found}, metadata)

    _replace(ExactlyOnce, "_send_offsets", send_position)


def no_renewal() -> None:
    """The producer goes on as it is after a transactional call that was slow or failed."""

    def stay(self: ExactlyOnce) -> None:
        pass

    _replace(ExactlyOnce, "_renew", stay)


def stale_metadata() -> None:
    """Offsets are sent in the name of the group's first generation, whatever came since."""
    group_metadata = RequestConsumer.group_metadata
    first: list[object] = []

    def remembered(self: RequestConsumer) -> object:
        if not first:
            first.append(group_metadata(self))
        return first[0]

    _replace(RequestConsumer, "group_metadata", remembered)


def offset_of_the_last() -> None:
    """The offset of the last request is committed, instead of the next one to read."""
    send_offsets = ExactlyOnce._send_offsets

    def one_less(self: ExactlyOnce, next_offsets: dict[int, int], metadata: object) -> None:
        less = {partition: offset - 1 for partition, offset in next_offsets.items()}
        send_offsets(self, less, metadata)

    _replace(ExactlyOnce, "_send_offsets", one_less)


def answers_outside() -> None:
    """Every answer is produced by a second producer, beside the transaction."""
    from confluent_kafka import Producer

    from stream_scorer.kafka.clients import producer_properties
    from stream_scorer.kafka.outputs import Output

    producers: list[Producer] = []

    def send(self: ExactlyOnce, output: Output) -> None:
        record = output.answer_record(self._routes, self._signature)
        assert record is not None
        if not producers:
            producers.append(Producer(producer_properties(self._settings)))
        (producer,) = producers
        headers: Any = record.headers
        producer.produce(
            record.topic,
            record.value,
            record.key,
            record.partition,
            headers=headers,
        )
        producer.flush(10)  # so that each is there before the worker dies

    _replace(ExactlyOnce, "_send_answer", send)


def out_of_turn() -> None:
    """A turn's answers are published from the last to the first."""
    deliver = ExactlyOnce.deliver

    def backwards(self: ExactlyOnce, turn: Turn, answers: list[Answer]) -> None:
        deliver(self, turn, answers[::-1])

    _replace(ExactlyOnce, "deliver", backwards)


def next_ones_answer() -> None:
    """At least once, each answer goes to the request beside its own."""
    deliver = AtLeastOnce.deliver

    def shifted(self: AtLeastOnce, turn: Turn, answers: list[Answer]) -> None:
        bodies = [answer.body for answer in answers]
        for answer, body in zip(answers, [*bodies[1:], bodies[0]], strict=True):
            answer.body = body
        deliver(self, turn, answers)

    _replace(AtLeastOnce, "deliver", shifted)


def _replace(owner: type, name: str, function: Callable[..., object]) -> None:
    assert name in vars(owner), f"{owner.__name__} has no {name} any more"
    setattr(owner, name, function)


ALL: Final[Mapping[str, Callable[[], None]]] = {
    bug.__name__: bug
    for bug in (
        no_rewind,
        offsets_outside,
        no_ownership_check,
        early_acknowledgement,
        client_position,
        no_renewal,
        stale_metadata,
        offset_of_the_last,
        answers_outside,
        out_of_turn,
        next_ones_answer,
    )
}
