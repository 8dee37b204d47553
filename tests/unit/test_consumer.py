from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream_scorer.config import ConfigError, Settings
from stream_scorer.kafka.consumer import (
    CHUNK,
    AssignmentListener,
    ConsumerFailed,
    Fenced,
    RequestConsumer,
    Turn,
)
from tests.fakes import FakeClock, FakeConsumer, error_message, message


class Rig:
    """A ``RequestConsumer`` on a ``FakeConsumer`` that owns partitions 0 and 1 unless said."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        assigned: Sequence[int] = (0, 1),
        **settings: Any,
    ) -> None:
        self.client = FakeConsumer()
        self.told: list[tuple[str, list[int]]] = []
        self.when_told: Callable[[], None] = lambda: None

        def make_client(properties: dict[str, Any]) -> FakeConsumer:
            self.client.properties = properties
            return self.client

        monkeypatch.setattr("stream_scorer.kafka.consumer.Consumer", make_client)
        self.consumer = RequestConsumer(
            Settings.model_validate(settings),
            AssignmentListener(
                assigned=self.listen("assigned"),
                revoked=self.listen("revoked"),
                lost=self.listen("lost"),
            ),
        )
        self.consumer.subscribe()
        if assigned:
            self.client.assign_now(*assigned)
        self.told.clear()

    def listen(self, what: str) -> Callable[[Sequence[int]], None]:
        def note(partitions: Sequence[int]) -> None:
            self.told.append((what, [*partitions]))
            self.when_told()

        return note

    def feed(self, *places: tuple[int, int], value: bytes = b"{}") -> None:
        self.client.feed(*(message(*place, value) for place in places))


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def places(turn: Turn) -> list[tuple[int, int]]:
    """Partition and offset of each request of a turn."""
    return [(request.partition, request.offset) for request in turn.requests]


def test_the_requests_topic_is_read_from_its_beginning_and_nothing_commits_by_itself(
    rig: Rig,
) -> None:
    assert rig.client.subscribed == ["score-requests"]
    properties = rig.client.properties
    assert properties["group.id"] == "stream-scorer"
    assert properties["auto.offset.reset"] == "earliest"
    assert properties["enable.auto.commit"] is False
    assert properties["enable.auto.offset.store"] is False
    assert properties["partition.assignment.strategy"] == "cooperative-sticky"
    assert "group.instance.id" not in properties, "static members are for exactly-once only"


def test_exactly_once_gives_everything_up_at_a_rebalance(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = Rig(monkeypatch, worker={"delivery": "exactly_once"}).client.properties
    assert properties["partition.assignment.strategy"] == "roundrobin"
    assert properties["group.instance.id"]


def test_the_new_group_protocol_gets_no_strategy_of_the_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("stream_scorer.kafka.consumer.Consumer", made.append)
    settings = Settings.model_validate({"kafka": {"consumer": {"group.protocol": "consumer"}}})
    RequestConsumer(settings, listener())
    assert "partition.assignment.strategy" not in made[0]


def listener() -> AssignmentListener:
    def ignore(_: Sequence[int]) -> None:
        """Nobody is told."""

    return AssignmentListener(assigned=ignore, revoked=ignore, lost=ignore)


@pytest.mark.parametrize(
    "kafka",
    [
        {"no.such.property": 1},
        {"consumer": {"session.timeout.ms": "soon"}},
        {"consumer": {"session.timeout.ms": 10_000, "max.poll.interval.ms": 5_000}},
    ],
)
def test_a_property_that_librdkafka_refuses_is_a_wrong_setting(kafka: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="@ kafka"):
        RequestConsumer(Settings.model_validate({"kafka": kafka}), listener())


@pytest.mark.parametrize("size", [900_000, 20_000_000, 100_000_000])
def test_every_limit_on_payloads_makes_a_consumer_that_can_be(size: int) -> None:
    RequestConsumer(Settings.model_validate({"limits": {"payload_bytes": size}}), listener())


def test_a_turn_takes_what_is_there_and_does_not_wait_for_more(rig: Rig) -> None:
    rig.feed((0, 5), (0, 6), (1, 2))
    turn = rig.consumer.take(0.1)
    assert places(turn) == [(0, 5), (0, 6), (1, 2)]
    assert rig.client.polls == [0.1], "only the first is waited for"
    assert {timeout for _, timeout in rig.client.consume_calls} == {0}


def test_a_turn_without_requests_asks_once(rig: Rig) -> None:
    assert places(rig.consumer.take(0.1)) == []
    assert rig.client.polls == [0.1]
    assert rig.client.consume_calls == []


@pytest.mark.parametrize(("bound", "there"), [(1, 5), (3, 5), (3, 3), (700, 1000)])
def test_a_turn_is_bounded_in_requests(
    monkeypatch: pytest.MonkeyPatch, bound: int, there: int
) -> None:
    rig = Rig(monkeypatch, worker={"max_turn": bound})
    rig.feed(*((0, offset) for offset in range(there)))
    turn = rig.consumer.take(0.1)
    assert places(turn) == [(0, offset) for offset in range(bound)]
    assert rig.client.waiting() == there - bound


def test_messages_are_asked_for_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, worker={"max_turn": 2 * CHUNK})
    rig.feed(*((0, offset) for offset in range(3 * CHUNK)))
    rig.consumer.take(0.1)
    assert [number for number, _ in rig.client.consume_calls] == [CHUNK, CHUNK - 1]


def test_a_turn_is_bounded_in_bytes_to_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, worker={"max_turn_bytes": 1000})
    rig.feed(*((0, offset) for offset in range(3 * CHUNK)), value=b"x" * 10)
    turn = rig.consumer.take(0.1)
    assert 100 <= len(turn.requests) <= 1 + CHUNK
    assert rig.client.waiting() == 3 * CHUNK - len(turn.requests)


def test_a_first_request_over_the_bound_in_bytes_is_a_turn_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, worker={"max_turn_bytes": 10})
    rig.feed((0, 1), (0, 2), value=b"x" * 10)
    assert places(rig.consumer.take(0.1)) == [(0, 1)]
    assert places(rig.consumer.take(0.1)) == [(0, 2)]


def test_null_payloads_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, worker={"max_turn_bytes": 1})
    rig.client.feed(message(0, 1, None), message(0, 2, None))
    assert places(rig.consumer.take(0.1)) == [(0, 1), (0, 2)]


@pytest.mark.parametrize("how", ["revoke_now", "lose_now"])
def test_what_was_taken_of_a_partition_that_goes_meanwhile_is_dropped(rig: Rig, how: str) -> None:
    rig.feed((0, 5), (1, 7), (0, 6))
    rig.client.feed(lambda: getattr(rig.client, how)(0))
    rig.feed((0, 7), (1, 8))
    turn = rig.consumer.take(0.1)
    assert places(turn) == [(1, 7), (1, 8)]
    assert not rig.consumer.still_owned(turn, 0)
    assert rig.consumer.still_owned(turn, 1)


def test_partitions_that_come_meanwhile_are_taken_from(rig: Rig) -> None:
    rig.feed((0, 5))
    rig.client.feed(lambda: rig.client.assign_now(2))
    rig.feed((2, 1))
    turn = rig.consumer.take(0.1)
    assert places(turn) == [(0, 5), (2, 1)]
    assert rig.consumer.still_owned(turn, 2)


def test_a_partition_that_goes_and_comes_within_one_call_cannot_be_told_apart(rig: Rig) -> None:
    rig.feed((0, 5))
    rig.client.feed(lambda: rig.client.revoke_now(0), lambda: rig.client.assign_now(0))
    rig.feed((0, 5))
    with pytest.raises(ConsumerFailed):
        rig.consumer.take(0.1)


def test_a_failed_consumer_ends_the_process_with_1() -> None:
    assert ConsumerFailed.exit_code == 1


@pytest.mark.parametrize("again", [False, True])
def test_a_partition_that_went_is_not_owned_though_it_may_be_back(rig: Rig, again: bool) -> None:
    rig.feed((0, 5), (1, 7))
    turn = rig.consumer.take(0.1)
    rig.client.revoke_now(0)
    if again:
        rig.client.assign_now(0)
    assert not rig.consumer.still_owned(turn, 0)
    assert rig.consumer.still_owned(turn, 1)
    assert not rig.consumer.still_owned(turn, 9)


def test_who_listens_is_told_of_each_change_apart(rig: Rig) -> None:
    rig.client.feed(
        lambda: rig.client.assign_now(2, 3),
        lambda: rig.client.revoke_now(0, 2),
        lambda: rig.client.lose_now(1),
    )
    rig.consumer.take(0.1)
    assert rig.told == [("assigned", [2, 3]), ("revoked", [0, 2]), ("lost", [1])]


def test_what_is_revoked_is_still_ours_while_it_is_told(rig: Rig) -> None:
    rig.feed((0, 5))
    turn = rig.consumer.take(0.1)
    owned: list[bool] = []
    rig.when_told = lambda: owned.append(rig.consumer.still_owned(turn, 0))
    rig.client.revoke_now(0)
    assert owned == [True]


def test_staying_alive_pauses_every_partition_and_takes_nothing(rig: Rig) -> None:
    rig.feed((0, 5), (1, 7))
    rig.consumer.keep_alive(0.05)
    assert rig.client.paused == {0, 1}
    assert rig.client.waiting() == 2
    assert rig.client.polls == [0.05]


def test_partitions_that_come_while_busy_are_paused_too(rig: Rig) -> None:
    rig.consumer.keep_alive(0.05)
    rig.client.feed(lambda: rig.client.assign_now(2))
    rig.consumer.keep_alive(0.05)
    rig.consumer.keep_alive(0.05)
    assert rig.client.paused == {0, 1, 2}
    rig.consumer.take(0.1)
    assert rig.client.paused == set()


def test_the_next_turn_resumes_them(rig: Rig) -> None:
    rig.feed((0, 5))
    rig.consumer.keep_alive(0.05)
    assert places(rig.consumer.take(0.1)) == [(0, 5)]
    assert rig.client.paused == set()


def test_what_is_resumed_is_sought_for(rig: Rig) -> None:
    """Without it the client fetches again only after most of a second."""
    rig.feed((0, 5), (1, 2))
    rig.consumer.take(0.1)
    rig.consumer.keep_alive(0.1)
    rig.consumer.take(0.1)
    assert sorted(rig.client.sought) == [(0, 6), (1, 3)]
    rig.consumer.take(0.1)
    assert len(rig.client.sought) == 2, "once"


def test_after_a_rewind_it_is_not_sought_for_what_came_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own position knows nothing of the rewind: requests would be left out."""
    committed = [TopicPartition("score-requests", 0, 5)]
    monkeypatch.setattr(rig.client, "committed", lambda *_: committed)
    rig.feed((0, 5), (0, 6))
    rig.consumer.take(0.1)
    rig.consumer.keep_alive(0.1)
    rig.consumer.rewind({0: 5})
    rig.consumer.take(0.1)
    assert rig.client.sought == [(0, 5)]


def test_what_was_taken_before_a_rewind_is_not_owned_any_more(rig: Rig) -> None:
    rig.feed((0, 5), (1, 7))
    turn = rig.consumer.take(0.1)
    rig.consumer.rewind({0: 5})
    assert not rig.consumer.still_owned(turn, 0)
    assert rig.consumer.still_owned(turn, 1)
    rig.feed((0, 5))
    assert rig.consumer.still_owned(rig.consumer.take(0.1), 0)


def test_what_is_paused_is_gone_back_in_when_it_is_resumed(rig: Rig) -> None:
    rig.feed((0, 5), (0, 6))
    rig.consumer.take(0.1)
    rig.consumer.keep_alive(0.1)
    rig.consumer.rewind({0: 5})
    assert rig.client.sought == []
    rig.consumer.take(0.1)
    assert rig.client.sought == [(0, 5)]


def test_a_message_that_came_while_busy_is_not_fetched_again(rig: Rig) -> None:
    rig.feed((0, 5))
    rig.consumer.take(0.1)
    rig.client.feed(lambda: rig.client.assign_now(2), message(2, 9))
    rig.consumer.keep_alive(0.1)
    rig.consumer.keep_alive(0.1)
    assert places(rig.consumer.take(0.1)) == [(2, 9)]
    assert sorted(rig.client.sought) == [(0, 6), (2, 10)]


def test_a_partition_whose_offset_is_not_known_is_not_gone_back_in(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = KafkaError(KafkaError.NOT_COORDINATOR)
    place = SimpleNamespace(partition=0, offset=-1001, error=error)
    monkeypatch.setattr(rig.client, "committed", lambda *_: [place])
    with pytest.raises(ConsumerFailed):
        rig.consumer.rewind({0: 5})


def test_a_partition_that_went_while_busy_is_not_resumed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed: list[int] = []
    monkeypatch.setattr(
        rig.client, "resume", lambda items: resumed.extend(item.partition for item in items)
    )
    rig.consumer.keep_alive(0.05)
    rig.client.feed(lambda: rig.client.revoke_now(0))
    rig.consumer.keep_alive(0.05)
    rig.consumer.take(0.1)
    assert resumed == [1]


def test_a_message_that_comes_while_busy_is_held_for_the_next_turn(rig: Rig) -> None:
    rig.consumer.keep_alive(0.05)
    rig.client.feed(lambda: rig.client.assign_now(2))
    rig.feed((2, 1), (0, 5))
    rig.consumer.keep_alive(0.05)
    polls = len(rig.client.polls)
    assert places(rig.consumer.take(0.1)) == [(2, 1), (0, 5)]
    assert len(rig.client.polls) == polls, "what is held is not waited for"


@pytest.mark.parametrize("how", ["revoke_now", "lose_now"])
def test_a_held_message_goes_with_its_partition(rig: Rig, how: str) -> None:
    rig.client.feed(lambda: rig.client.assign_now(2), lambda: rig.client.assign_now(3))
    rig.feed((2, 1))
    rig.consumer.keep_alive(0.05)
    rig.feed((3, 1))
    rig.client.paused.discard(3)
    rig.consumer.keep_alive(0.05)
    getattr(rig.client, how)(2)
    assert places(rig.consumer.take(0.1)) == [(3, 1)]


def test_an_error_held_while_busy_is_not_lost(rig: Rig) -> None:
    rig.client.feed(error_message(KafkaError(KafkaError._FATAL, "fenced", fatal=True)))
    rig.consumer.keep_alive(0.05)
    rig.client.revoke_now(0)
    with pytest.raises(ConsumerFailed, match="fenced"):
        rig.consumer.take(0.1)


@pytest.mark.parametrize("flag", [True, False])
def test_a_fatal_error_ends_it(rig: Rig, flag: bool) -> None:
    """Also without its flag, which the client leaves out when a member was fenced."""
    rig.feed((0, 5))
    rig.client.feed(error_message(KafkaError(KafkaError._FATAL, "fenced", fatal=flag)))
    with pytest.raises(ConsumerFailed, match="fenced"):
        rig.consumer.take(0.1)


def test_who_was_fenced_says_by_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, worker={"instance_id": "here", "slot": 2})
    # As librdkafka words it, twice.
    text = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()
    told = f"Fatal error: {text}: Fatal consumer error: {text}"
    rig.client.feed(error_message(KafkaError(KafkaError._FATAL, told)))
    with pytest.raises(Fenced, match=r"'here-2'.*worker\.instance_id"):
        rig.consumer.take(0.1)


def test_who_was_fenced_has_nothing_to_wait_for(rig: Rig) -> None:
    rig.client.feed(error_message(KafkaError(KafkaError._FATAL, "fenced")))
    with pytest.raises(ConsumerFailed):
        rig.consumer.take(0.1)
    polls = len(rig.client.polls)
    rig.consumer.close(8)
    assert rig.client.closed
    assert rig.client.polls[polls:] == [0]


def test_a_fatal_error_beside_a_rebalance_ends_it_too(rig: Rig) -> None:
    """It comes once: passed over, the worker would wait without end for requests."""
    rig.feed((0, 5))
    rig.client.feed(lambda: rig.client.lose_now(0, 1))
    rig.client.feed(error_message(KafkaError(KafkaError._FATAL, "fenced", fatal=True)))
    with pytest.raises(ConsumerFailed, match="fenced"):
        rig.consumer.take(0.1)


@pytest.mark.parametrize(
    ("code", "level"),
    [
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "ERROR"),
        (KafkaError._MAX_POLL_EXCEEDED, "WARNING"),
        (KafkaError._AUTO_OFFSET_RESET, "WARNING"),
        (KafkaError._TRANSPORT, "WARNING"),
        (KafkaError._PARTITION_EOF, None),
    ],
)
def test_other_errors_are_told_and_reading_goes_on(
    rig: Rig, caplog: pytest.LogCaptureFixture, code: int, level: str | None
) -> None:
    rig.feed((0, 5))
    rig.client.feed(error_message(KafkaError(code, "what happened"), partition=0))
    rig.feed((0, 6))
    assert places(rig.consumer.take(0.1)) == [(0, 5), (0, 6)]
    told = [record.levelname for record in caplog.records if "what happened" in record.message]
    assert told == ([] if level is None else [level])


@pytest.mark.parametrize(
    ("code", "right"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "READ on topic score-requests"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, "READ on group stream-scorer"),
    ],
)
def test_a_right_that_is_missing_ends_the_worker(rig: Rig, code: int, right: str) -> None:
    """The client tells of it once, and then gives nothing."""
    rig.client.feed(error_message(KafkaError(code, "what happened"), partition=0))
    with pytest.raises(ConsumerFailed, match=right):
        rig.consumer.take(0.1)


def test_a_commit_names_the_next_offsets_to_read(rig: Rig) -> None:
    rig.consumer.commit({0: 6, 1: 8}, timeout=1)
    rig.consumer.commit({0: 7})
    assert rig.client.commits == [{0: 6, 1: 8}, {0: 7}]
    assert rig.client.waited == [{0: 6, 1: 8}], "only the first is waited for"
    assert not rig.consumer.commit_failed


@pytest.mark.parametrize("timeout", [0, 1])
def test_a_commit_that_fails_is_told_not_raised(rig: Rig, timeout: float) -> None:
    rig.client.commit_error = KafkaError(KafkaError.REBALANCE_IN_PROGRESS)
    rig.consumer.commit({0: 6}, timeout=timeout)
    assert rig.consumer.commit_failed == bool(timeout), "known at once where it is waited for"
    rig.consumer.take(0.1)
    assert rig.consumer.commit_failed


def test_a_commit_that_is_not_answered_in_time_has_failed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silence(*_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    monkeypatch.setattr(rig.client, "committed", silence)
    rig.consumer.commit({0: 6}, timeout=1)
    assert rig.consumer.commit_failed


def test_where_partitions_begin_is_told_where_nothing_is_committed(rig: Rig) -> None:
    rig.client.positions = {1: 0}
    rig.client.beginnings = {0: 40}
    rig.consumer.take(0.1)
    assert rig.consumer.beginnings() == {0: 40}, "a committed 0 is an offset too"
    assert rig.consumer.beginnings() == {}, "once"


def test_where_a_partition_begins_is_told_each_time_that_it_comes(rig: Rig) -> None:
    rig.consumer.beginnings()
    rig.client.feed(lambda: rig.client.revoke_now(0), lambda: rig.client.assign_now(0, 2))
    rig.consumer.take(0.1)
    assert rig.consumer.beginnings() == {0: 0, 2: 0}


def test_of_a_partition_that_went_again_no_beginning_is_told(rig: Rig) -> None:
    rig.client.feed(lambda: rig.client.lose_now(0))
    rig.consumer.keep_alive(0.1)
    assert rig.consumer.beginnings() == {1: 0}


@pytest.mark.parametrize("question", ["committed", "get_watermark_offsets"])
def test_a_broker_that_does_not_tell_where_partitions_begin_ends_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    def silence(*_: object, **__: object) -> None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    monkeypatch.setattr(rig.client, question, silence)
    assert rig.consumer.beginnings() == {}


def test_a_partition_whose_committed_offset_is_not_known_has_no_beginning(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be committed: to commit its beginning could go back behind that."""
    error = KafkaError(KafkaError.NOT_COORDINATOR)
    place = SimpleNamespace(partition=0, offset=-1001, error=error)
    monkeypatch.setattr(rig.client, "committed", lambda *_: [place])
    assert rig.consumer.beginnings() == {}


def test_where_partitions_begin_is_asked_again_of_a_broker_that_did_not_tell(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr("stream_scorer.kafka.consumer.monotonic", clock)
    answers = rig.client.committed

    def silence(*_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    monkeypatch.setattr(rig.client, "committed", silence)
    assert rig.consumer.beginnings() == {}
    monkeypatch.setattr(rig.client, "committed", answers)
    assert rig.consumer.beginnings() == {}, "not at once"
    rig.feed((0, 5))
    rig.consumer.take(0.1)
    clock.move(10)
    assert rig.consumer.beginnings() == {1: 0}, "0 is committed with its answers"
    clock.move(10)
    assert rig.consumer.beginnings() == {}, "once"


def test_the_lag_is_what_has_not_been_read_whoever_committed_what_was(rig: Rig) -> None:
    """The client's own knows nothing of offsets that a transaction committed."""

    def partition(**known: int) -> dict[str, int]:
        unknown = {"hi_offset": -1001, "lo_offset": -1001, "committed_offset": -1001}
        return {**unknown, "consumer_lag": 1000, **known}

    def lag(partitions: dict[str, dict[str, int]]) -> int:
        statistics = {"topics": {"score-requests": {"partitions": partitions}}}
        rig.client.properties["stats_cb"](orjson.dumps(statistics).decode())
        return rig.consumer.lag

    assert lag({"0": partition(), "7": partition(hi_offset=50, lo_offset=0)}) == 0
    assert lag({"0": partition(hi_offset=50, lo_offset=10)}) == 40
    assert lag({"1": partition(hi_offset=50, lo_offset=10, committed_offset=45)}) == 5
    rig.feed((0, 47))
    rig.consumer.take(0.1)
    assert lag({"0": partition(hi_offset=50, lo_offset=10, committed_offset=20)}) == 2


def test_a_member_with_no_partitions_from_the_start_learns_that_it_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the newer protocol the client says nothing of an assignment that was always empty."""
    rig = Rig(monkeypatch, assigned=(), kafka={"consumer": {"group.protocol": "consumer"}})

    def tell(state: str) -> list[tuple[str, list[int]]]:
        statistics = {"topics": {}, "cgrp": {"state": state}}
        rig.client.properties["stats_cb"](orjson.dumps(statistics).decode())
        return rig.told

    assert tell("wait-coord") == []
    assert tell("up") == [("assigned", [])]
    assert tell("up") == [("assigned", [])], "once"


def test_closing_tells_of_what_was_ours_and_leaves(rig: Rig) -> None:
    rig.consumer.close()
    assert rig.told == [("revoked", [0, 1])]
    assert rig.client.closed


def test_a_broker_that_does_not_answer_keeps_nobody(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = threading.Event()
    monkeypatch.setattr(rig.client, "close", gone.wait)
    rig.consumer.close()
    gone.set()
    assert "without telling it" in caplog.text


def test_an_assignment_that_comes_while_we_leave_is_given_back_before_the_close(rig: Rig) -> None:
    """Within close() it could hang the process (librdkafka issue 4527)."""
    rig.client.feed(lambda: rig.client.assign_now(2))
    rig.consumer.close()
    assert rig.told == [("assigned", [2]), ("revoked", [0, 1, 2])]
    assert rig.client.closed


def test_the_group_is_left_before_the_close_though_a_rebalance_puts_it_off(rig: Rig) -> None:
    """Otherwise the coordinator keeps a member that is gone, and its partitions, for a session."""

    def end_the_rebalance(_: float) -> None:
        rig.client.rebalancing = len(rig.client.polls) < 5

    rig.client.rebalancing = True
    rig.client.on_idle = end_the_rebalance
    rig.consumer.close(1)
    assert rig.client.closed
    assert len(rig.client.polls) > 5


def test_a_member_by_the_newer_protocol_keeps_its_name_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, kafka={"consumer": {"group.protocol": "consumer"}})
    rig.consumer.close()
    assert rig.client.member
    assert rig.client.closed
    assert sum(rig.client.polls) < 1


def test_leaving_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> None:
    clock = FakeClock()
    monkeypatch.setattr("stream_scorer.kafka.consumer.monotonic", clock)
    rig.client.on_idle = clock.move
    monkeypatch.setattr(rig.client, "unsubscribe", lambda: None)
    monkeypatch.setattr(rig.client, "close", lambda: None)
    rig.consumer.close(3)
    assert sum(rig.client.polls) == pytest.approx(3, abs=0.1)


def test_the_configured_content_type_is_for_records_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, topics={"default_content_type": "text/csv"})
    rig.client.feed(message(0, 5, headers=()))
    (request,) = rig.consumer.take(0.1).requests
    assert request.content_type == "text/csv"
