from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, Message

from stream_scorer import worker as module
from stream_scorer.config import Settings
from stream_scorer.kafka import at_least_once
from stream_scorer.kafka.at_least_once import COMMIT_INTERVAL
from stream_scorer.kafka.consumer import ConsumerFailed
from stream_scorer.kafka.producer import DeliveryFailed
from stream_scorer.kafka.topics import Topics
from stream_scorer.protocol import Answer, Request
from stream_scorer.worker import DrainTimeout, Worker
from tests.fakes import (
    EchoScorer,
    FakeClock,
    FakeConsumer,
    FakeProducer,
    FakeTopics,
    Sent,
    error_message,
    message,
)

KNOWN = {"score-results": 4, "score-replies": 3, "score-requests.dlq": 2}
NOW_MS = 1_000_000
DRAIN_TIMEOUT = 8.0

Headers = list[tuple[str, str | bytes | None]]


class Rig:
    """A ``Worker`` on fake clients, owning partitions 0 and 1; time moves when it waits.

    Its group is no new one: all of its partitions have a committed offset.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, scorer: EchoScorer | None = None, **settings: Any
    ) -> None:
        self.clock = FakeClock(NOW_MS / 1000)
        self.scorer = scorer or EchoScorer()
        self.consumer = FakeConsumer()
        self.producer = FakeProducer()
        self.consumer.on_idle = self.clock.move
        self.consumer.positions = dict.fromkeys(range(4), 0)

        def make_consumer(properties: dict[str, Any]) -> FakeConsumer:
            self.consumer.properties = properties
            return self.consumer

        def make_producer(properties: dict[str, Any]) -> FakeProducer:
            self.producer.properties = properties
            return self.producer

        monkeypatch.setattr("stream_scorer.kafka.consumer.Consumer", make_consumer)
        monkeypatch.setattr("stream_scorer.kafka.producer.Producer", make_producer)
        monkeypatch.setattr(module, "monotonic", self.clock)
        monkeypatch.setattr(at_least_once, "monotonic", self.clock)
        monkeypatch.setattr(module, "time", self.clock)
        if isinstance(self.scorer, SlowScorer):
            monkeypatch.setattr(module, "PATIENCE", 0.001)  # it counts as slow almost at once
        self.worker = Worker(
            Settings.model_validate(settings),
            cast("Topics", FakeTopics(KNOWN)),
            self.scorer,
            "wine; version=1",
            ("application/json",),
        )

    def start(self, *partitions: int) -> None:
        self.worker._consumer.subscribe()
        self.consumer.assign_now(*partitions)

    def feed(self, *places: tuple[int, int], **fields: Any) -> None:
        self.consumer.feed(*(message(*place, **fields) for place in places))

    def step(self, times: int = 1) -> None:
        """Turns, each after the time of a commit has come."""
        for _ in range(times):
            self.clock.move(COMMIT_INTERVAL)
            self.worker.step()

    def answers(self) -> list[tuple[bytes | None, bytes | None]]:
        """Request and status of every answer sent, wherever to."""
        return [
            (sent.header("request"), sent.header("status"))
            for sent in self.producer.sent
            if sent.header("status") is not None
        ]

    def details(self) -> list[str]:
        return [
            json.loads(sent.value or b"{}").get("detail")
            for sent in self.producer.sent
            if sent.header("status") is not None
        ]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    fresh = Rig(monkeypatch)
    fresh.start(0, 1)
    return fresh


def ok(*offsets: int, partition: int = 0) -> list[tuple[bytes, bytes]]:
    return [(b"score-requests/%d/%d" % (partition, offset), b"ok") for offset in offsets]


# What a turn does.


def test_a_turn_is_scored_at_once_and_answered(rig: Rig) -> None:
    rig.feed((0, 5), (0, 6), value=b"[1]", key=b"k")
    rig.step()
    assert [[request.offset for request in turn] for turn in rig.scorer.turns] == [[5, 6]]
    assert rig.answers() == ok(5, 6)
    assert [(sent.topic, sent.key, sent.value) for sent in rig.producer.sent] == [
        ("score-results", b"k", b"[1]")
    ] * 2
    assert rig.producer.sent[0].header("model") == b"wine; version=1"


def test_a_turn_without_requests_troubles_nobody(rig: Rig) -> None:
    rig.step(3)
    assert rig.scorer.turns == []
    assert rig.producer.sent == []
    assert rig.consumer.commits == []


def test_answers_come_in_the_order_of_their_requests(rig: Rig) -> None:
    wrong: Headers = [("deadline", b"soon")]
    rig.consumer.feed(message(0, 1), message(0, 2, headers=wrong), message(0, 3), message(1, 1))
    rig.step()
    assert [request for request, _ in rig.answers()] == [
        b"score-requests/0/1",
        b"score-requests/0/2",
        b"score-requests/0/3",
        b"score-requests/1/1",
    ]
    assert [[request.offset for request in turn] for turn in rig.scorer.turns] == [[1, 3, 1]]


@pytest.mark.parametrize(("count", "flushes"), [(0, []), (1, [0.001]), (16, [0.001]), (17, [])])
def test_without_a_backlog_answers_are_sent_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, count: int, flushes: list[float]
) -> None:
    """However long ``linger.ms`` is, which serves turns of many."""
    monkeypatch.setattr(at_least_once, "LIGHT_TURN", 16)
    rig.feed(*((0, offset) for offset in range(count)))
    rig.worker.step()
    assert rig.producer.flushes == flushes


def test_the_time_in_the_queue_is_told(rig: Rig) -> None:
    rig.feed((0, 1), timestamp=NOW_MS - 1500)
    rig.feed((0, 2), timestamp=NOW_MS + 60_000)
    rig.worker.step()
    queues = [(sent.header("server-timing") or b"").split(b",")[0] for sent in rig.producer.sent]
    assert queues == [b"queue;dur=1500", b"queue;dur=0"], "clocks of hosts differ"


# What is refused before it is scored.


def refused(rig: Rig, headers: Headers) -> Sent:
    """The one answer to a request that must not reach the scorer."""
    rig.consumer.assign_now(3)
    rig.consumer.feed(message(3, 5, b"payload", headers, key=b"k"))
    rig.worker.step()
    assert rig.scorer.turns == []
    (answer,) = (sent for sent in rig.producer.sent if sent.header("status") is not None)
    assert len(rig.producer.sent) <= 2, "an answer, and perhaps a dead letter"
    assert answer.key == b"k"
    assert answer.header("content-type") == b"application/problem+json"
    return answer


def test_headers_that_cannot_be_read_are_answered_invalid_request(rig: Rig) -> None:
    answer = refused(rig, [("content-type", b"\xff"), ("correlation-id", b"id")])
    assert answer.header("status") == b"invalid-request"
    assert answer.header("correlation-id") == b"id"
    assert rig.details() == ["header 'content-type' is not UTF-8"]
    assert len(rig.producer.to("score-requests.dlq")) == 1


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ([("reply-topic", b"other")], "answers may not be sent to topic 'other'"),
        ([("reply-topic", b"score-requests")], "answers may not be sent"),
        ([("reply-topic", b"score-replies"), ("reply-partition", b"3")], "has 3 partitions"),
        ([("reply-topic", b"score-replies"), ("reply-partition", b"one")], "not a decimal number"),
        ([("reply-partition", b"1")], "without reply-topic"),
        ([("reply-topic", b"\xff")], "is not UTF-8"),
    ],
)
def test_a_reply_address_that_cannot_be_used_is_told_on_the_results(
    rig: Rig, headers: Headers, detail: str
) -> None:
    answer = refused(rig, headers)
    assert (answer.topic, answer.partition) == ("score-results", 3)
    assert answer.header("status") == b"invalid-request"
    assert detail in rig.details()[0]
    (letter,) = rig.producer.to("score-requests.dlq")
    assert letter.value == b"payload"
    assert letter.headers[: len(headers)] == headers


@pytest.mark.parametrize(
    ("topic", "partition"),
    [
        (b"score-requests", b"0"),
        (b"score-requests.dlq", b"0"),
        (b"other", b"0"),
        (b"score-replies", b"3"),
    ],
)
@pytest.mark.parametrize(
    "fault", [("deadline", b"soon"), ("content-type", b"\xff"), ("accept", b"\xff")]
)
def test_another_fault_opens_no_way_to_an_address_that_is_not_allowed(
    rig: Rig, topic: bytes, partition: bytes, fault: tuple[str, bytes]
) -> None:
    """Else a caller could have problems written to any topic, the requests' own too."""
    answer = refused(rig, [("reply-topic", topic), ("reply-partition", partition), fault])
    assert (answer.topic, answer.partition) == ("score-results", 3)
    assert answer.header("status") == b"invalid-request"


def test_another_fault_is_told_at_the_reply_address(rig: Rig) -> None:
    answer = refused(
        rig,
        [("reply-topic", b"score-replies"), ("reply-partition", b"2"), ("deadline", b"soon")],
    )
    assert (answer.topic, answer.partition) == ("score-replies", 2)
    assert rig.details() == ["header 'deadline' is not a decimal number"]


def test_a_request_past_its_deadline_is_not_scored(rig: Rig) -> None:
    answer = refused(rig, [("deadline", b"%d" % (NOW_MS - 1)), ("reply-topic", b"score-replies")])
    assert (answer.topic, answer.partition) == ("score-replies", 0)
    assert answer.header("status") == b"expired"
    assert rig.producer.to("score-requests.dlq") == []


@pytest.mark.parametrize("left", [-1, 0])
def test_a_deadline_that_passed_is_expired_however_fast_the_worker_is(rig: Rig, left: int) -> None:
    deadline = NOW_MS + left
    rig.consumer.feed(message(0, 2, headers=[("content-type", b"a/b"), _deadline(deadline)]))
    rig.worker.step()
    assert [status for _, status in rig.answers()] == [b"ok" if left == 0 else b"expired"]


def test_of_a_backlog_only_what_is_done_in_time_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for each request: of five, three are done in time."""
    rig = Rig(monkeypatch)
    rig.scorer.before = lambda items: rig.clock.move(len(items))
    rig.start(0)
    rig.feed((0, 1))
    rig.worker.step()
    now = int(rig.clock() * 1000)
    for offset, left in enumerate((1_000, 2_500, 3_400, 3_500, 4_000), 2):
        rig.consumer.feed(message(0, offset, headers=[_deadline(now + left)]))
    rig.worker.step()
    statuses = [b"ok", b"expired", b"expired", b"ok", b"ok", b"ok"]
    assert [status for _, status in rig.answers()] == statuses


def test_one_slow_turn_expires_no_later_request_that_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch)
    rig.scorer.before = lambda items: rig.clock.move(3 if items[0].offset == 1 else 0)
    rig.start(0)
    rig.feed((0, 1))
    rig.worker.step()
    deadline = int(rig.clock() * 1000) + 1000
    rig.consumer.feed(message(0, 2, headers=[_deadline(deadline)]))
    rig.worker.step()
    assert [status for _, status in rig.answers()] == [b"ok", b"ok"]


def _deadline(milliseconds: int) -> tuple[str, bytes]:
    return "deadline", b"%d" % milliseconds


# Commits.


def test_only_what_is_delivered_is_committed(rig: Rig) -> None:
    rig.producer.stalled = True
    rig.feed((0, 5), (1, 7))
    rig.step(3)
    assert rig.consumer.commits == []
    rig.producer.stalled = False
    rig.step()
    assert rig.consumer.commits == [{0: 6, 1: 8}]


def test_a_turn_is_committed_before_the_next_one_is_published(rig: Rig) -> None:
    """It is delivered while the next is scored."""
    rig.producer.stalled = True
    rig.feed((0, 5))
    rig.step()
    sent_before: list[int] = []

    def idle(timeout: float) -> None:
        rig.clock.move(timeout)
        sent_before.append(len(rig.producer.sent))
        rig.producer.stalled = len(sent_before) < 3  # a slow broker

    rig.consumer.on_idle = idle
    rig.feed((0, 6))
    rig.step()
    assert sent_before == [1, 1, 1], "nothing more is published until then"
    assert rig.consumer.commits[0] == {0: 6}
    assert rig.answers() == ok(5, 6)


def test_a_new_group_commits_where_it_begins_before_what_it_answers(rig: Rig) -> None:
    """Else nobody could tell from outside how far behind it is, as long as nothing comes."""
    rig.consumer.positions = {}
    rig.consumer.beginnings = {0: 5}
    rig.feed((0, 5))
    rig.step(2)
    assert rig.consumer.commits == [{0: 5, 1: 0}, {0: 6, 1: 0}]


def test_a_beginning_that_could_not_be_committed_is_committed_again(rig: Rig) -> None:
    rig.consumer.positions = {}
    rig.consumer.commit_error = KafkaError(KafkaError.REBALANCE_IN_PROGRESS)
    rig.step()
    assert rig.consumer.commits == [{0: 0, 1: 0}]
    rig.consumer.commit_error = None
    rig.clock.move(1)
    rig.step(2)
    assert rig.consumer.commits[1:] == [{0: 0, 1: 0}]


def test_a_group_that_was_there_before_goes_on_from_where_it_was(rig: Rig) -> None:
    rig.step(2)
    assert rig.consumer.commits == []


def test_waiting_for_a_slow_broker_can_be_given_up(rig: Rig) -> None:
    rig.producer.stalled = True
    rig.feed((0, 5))
    rig.step()
    rig.worker.stop()
    rig.feed((0, 6))
    with pytest.raises(DrainTimeout):
        rig.step()
    assert rig.consumer.commits == []


def test_commits_are_made_at_intervals_and_not_waited_for(rig: Rig) -> None:
    for offset in range(5):
        rig.feed((0, offset))
        rig.worker.step()
    assert rig.consumer.commits == [{0: 1}], "after a pause there is nothing to wait for"
    rig.step()
    assert rig.consumer.commits == [{0: 1}, {0: 5}]
    assert rig.consumer.waited == []


def test_what_is_committed_is_not_committed_again(rig: Rig) -> None:
    rig.feed((0, 5))
    rig.step(5)
    assert rig.consumer.commits == [{0: 6}]


def test_a_commit_that_failed_is_repeated(rig: Rig) -> None:
    rig.consumer.commit_error = KafkaError(KafkaError.REBALANCE_IN_PROGRESS)
    rig.feed((0, 5))
    rig.step(3)
    assert rig.consumer.commits == [{0: 6}] * 3
    rig.consumer.commit_error = None
    rig.step(3)
    assert rig.consumer.commits == [{0: 6}] * 4, "until it succeeds"


def test_where_nothing_is_ours_any_more_nothing_is_committed(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """A commit of nothing is an error to the client, and would be repeated without end."""
    caplog.set_level("INFO")
    rig.feed((0, 5), (1, 7))
    rig.step(2)
    rig.consumer.feed(lambda: rig.consumer.lose_now(0, 1))
    rig.step(4)
    assert rig.consumer.commits == [{0: 6, 1: 8}]
    assert "commit failed" not in caplog.text


def test_an_answer_that_cannot_be_delivered_ends_the_worker_uncommitted(rig: Rig) -> None:
    rig.producer.outcome = lambda _: KafkaError(KafkaError._MSG_TIMED_OUT)
    rig.feed((0, 5))
    with pytest.raises(DeliveryFailed):
        rig.step()
    assert rig.consumer.commits == []


# Partitions that come and go.


@pytest.mark.parametrize("how", ["revoke_now", "lose_now"])
@pytest.mark.parametrize("again", [False, True])
def test_what_is_revoked_while_it_is_scored_is_dropped(
    monkeypatch: pytest.MonkeyPatch, how: str, again: bool
) -> None:
    """Another answers it, or has, also when the partition has come back."""
    slow = SlowScorer()
    rig = Rig(monkeypatch, slow)
    slow.attach(rig)
    rig.start(0, 1)
    rig.feed((0, 5), (1, 7))
    changes: list[Callable[[], None]] = [lambda: getattr(rig.consumer, how)(0)]
    changes += [lambda: rig.consumer.assign_now(0)] if again else []
    slow.meanwhile = changes
    rig.step()
    assert rig.answers() == ok(7, partition=1)
    rig.step()
    assert rig.consumer.commits == [{1: 8}]
    if again:
        rig.feed((0, 5), (0, 6))
        rig.step(2)
        assert rig.answers() == [*ok(7, partition=1), *ok(5, 6)]
        assert rig.consumer.commits[-1] == {0: 7, 1: 8}


class SlowScorer(EchoScorer):
    """Scores until the worker has polled often enough beside it, and all has happened."""

    def __init__(self, polls: int = 3) -> None:
        super().__init__(self.wait)
        self.polls = polls
        self.meanwhile: list[Callable[[], None]] = []
        self.release = threading.Event()

    def wait(self, _: Sequence[Request]) -> None:
        assert self.release.wait(60)

    def attach(self, rig: Rig) -> None:
        def idle(timeout: float) -> None:
            rig.clock.move(timeout)
            if self.meanwhile:
                rig.consumer.feed(self.meanwhile.pop(0))
            elif self.polls > 0:
                self.polls -= 1
            else:
                self.release.set()

        rig.consumer.on_idle = idle


def test_a_slow_model_does_not_cost_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner polls beside it with every partition paused, and serves delivery reports."""
    slow = SlowScorer()
    rig = Rig(monkeypatch, slow)
    slow.attach(rig)
    rig.start(0, 1)
    slow.release.set()
    rig.producer.stalled = True
    rig.feed((1, 6))
    rig.step()
    slow.release.clear()
    rig.producer.stalled = False
    rig.feed((0, 5))
    paused: list[set[int]] = []
    undelivered: list[int] = []
    slow.meanwhile = [
        lambda: paused.append(set(rig.consumer.paused)),
        lambda: undelivered.append(len(rig.producer)),
    ]
    rig.step()
    assert len(rig.consumer.polls) >= 6
    assert paused == [{0, 1}]
    assert undelivered == [0]
    assert rig.answers() == [*ok(6, partition=1), *ok(5)]
    rig.feed((1, 7))
    rig.step()
    assert rig.consumer.paused == set()
    assert rig.answers()[2:] == ok(7, partition=1)


def test_partitions_that_come_while_scoring_wait_for_the_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SlowScorer()
    rig = Rig(monkeypatch, slow)
    slow.attach(rig)
    rig.start(0)
    rig.feed((0, 5))

    def arrive() -> None:
        rig.consumer.assign_now(2)
        rig.feed((2, 1))

    slow.meanwhile = [arrive]
    rig.step()
    assert rig.answers() == ok(5)
    rig.step(2)
    assert rig.answers() == [*ok(5), *ok(1, partition=2)]
    assert rig.consumer.commits[-1] == {0: 6, 2: 2}


def test_on_revoke_what_is_published_is_delivered_and_committed_first(rig: Rig) -> None:
    rig.producer.stalled = True
    rig.feed((0, 5), (1, 7))
    rig.step()
    rig.producer.stalled = False
    rig.consumer.feed(lambda: rig.consumer.revoke_now(0))
    rig.step()
    assert rig.producer.flushes[-1] == DRAIN_TIMEOUT
    assert rig.consumer.commits == [{0: 6}, {1: 8}]
    assert rig.consumer.waited == [rig.consumer.commits[0]], "only the one on revoke"


def test_on_revoke_what_is_not_delivered_in_time_is_not_committed(rig: Rig) -> None:
    rig.producer.stalled = True
    rig.feed((0, 5))
    rig.step()
    rig.consumer.feed(lambda: rig.consumer.revoke_now(0))
    rig.step()
    rig.producer.stalled = False
    rig.step(2)
    assert rig.consumer.commits == []


def test_what_is_lost_is_not_committed(rig: Rig) -> None:
    rig.feed((1, 6))
    rig.step()
    rig.feed((0, 5), (1, 7))
    rig.worker.step()  # before the time of a commit has come
    rig.consumer.feed(lambda: rig.consumer.lose_now(0))
    rig.step()
    assert rig.consumer.commits == [{1: 7}, {1: 8}]


def test_a_failed_delivery_on_revoke_still_ends_the_worker(rig: Rig) -> None:
    rig.producer.stalled = True
    rig.feed((0, 5), (1, 7))
    rig.step()
    rig.producer.stalled = False
    rig.producer.outcome = lambda _: KafkaError(KafkaError._MSG_TIMED_OUT)
    rig.consumer.feed(lambda: rig.consumer.revoke_now(0))
    with pytest.raises(DeliveryFailed):
        rig.worker.step()
    assert rig.consumer.commits == []


# A full producer queue.


def test_a_full_queue_makes_the_worker_wait_in_the_group(rig: Rig) -> None:
    rig.producer.room = 1
    rig.producer.stalled = True
    polls = 0

    def idle(_: float) -> None:
        nonlocal polls
        polls += 1
        rig.producer.stalled = polls % 2 == 0

    rig.consumer.on_idle = idle
    rig.feed((0, 5), (0, 6), (0, 7))
    rig.worker.step()
    assert polls > 0
    assert rig.answers() == ok(5, 6, 7)


def test_what_is_revoked_while_the_queue_is_full_is_dropped(rig: Rig) -> None:
    rig.producer.room = 1
    rig.producer.stalled = True

    def idle(_: float) -> None:
        if 0 in rig.consumer.owned:
            rig.consumer.revoke_now(0)
        rig.producer.stalled = False

    rig.consumer.on_idle = idle
    rig.feed((0, 5), (0, 6), (0, 7), (1, 1))
    rig.worker.step()
    assert ok(7)[0] not in rig.answers(), "its partition had gone before its turn came"
    assert ok(1, partition=1)[0] in rig.answers()


def test_what_was_revoked_while_its_answer_waited_for_room_is_never_committed_again(
    rig: Rig,
) -> None:
    """Its new owner goes on from a later offset, which must not be set back."""
    rig.producer.room = 1
    rig.producer.stalled = True

    def idle(timeout: float) -> None:
        rig.clock.move(timeout)
        if 0 in rig.consumer.owned:
            rig.producer.stalled = False
            rig.consumer.revoke_now(0)

    rig.consumer.on_idle = idle
    rig.feed((0, 5), (0, 6), (0, 7), (1, 1))
    rig.worker.step()
    rig.producer.room = 1000
    rig.feed((1, 2))
    rig.step(2)
    assert rig.consumer.commits[0] == {0: 6}
    assert rig.consumer.commits[-1] == {1: 3}
    assert all(0 not in commit for commit in rig.consumer.commits[1:])


def refusing_replies(rig: Rig, monkeypatch: pytest.MonkeyPatch, *, full: int) -> None:
    """A reply is refused, and what stands in for it finds the queue full so many times."""
    gone = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
    rig.producer.outcome = lambda sent: gone if sent.topic == "score-replies" else None
    produce = rig.producer.produce

    def produce_when_there_is_room(topic: str, *arguments: Any, **named: Any) -> None:
        nonlocal full
        if topic == "score-results" and full > 0:
            full -= 1
            raise BufferError("Local: Queue full")
        produce(topic, *arguments, **named)

    monkeypatch.setattr(rig.producer, "produce", produce_when_there_is_room)


def test_nothing_is_committed_while_an_answer_waits_to_be_sent_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing_replies(rig, monkeypatch, full=2)
    seen: list[int] = []
    rig.consumer.on_idle = lambda _: seen.append(len(rig.consumer.commits))
    headers: Headers = [("reply-topic", b"score-replies"), ("reply-partition", b"0")]
    rig.feed((0, 5), headers=[("content-type", b"application/json"), *headers])
    rig.step(3)
    assert seen[:2] == [0, 0], "it was waited for twice"
    assert rig.consumer.commits == [{0: 6}]
    assert (b"score-requests/0/5", b"invalid-request") in rig.answers()


def test_on_revoke_what_stands_in_for_a_refused_answer_is_delivered_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing_replies(rig, monkeypatch, full=0)
    headers: Headers = [("reply-topic", b"score-replies"), ("reply-partition", b"0")]
    rig.producer.stalled = True
    rig.feed((0, 5), headers=[("content-type", b"application/json"), *headers])
    rig.step()
    rig.producer.stalled = False
    rig.consumer.feed(lambda: rig.consumer.revoke_now(0))
    rig.worker.step()
    assert rig.consumer.commits == [{0: 6}]
    assert (b"score-requests/0/5", b"invalid-request") in rig.answers()


def test_what_waits_to_be_sent_again_when_time_is_up_is_not_committed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing_replies(rig, monkeypatch, full=1_000_000)
    headers: Headers = [("reply-topic", b"score-replies"), ("reply-partition", b"0")]
    rig.producer.stalled = True
    rig.feed((0, 5), headers=[("content-type", b"application/json"), *headers])
    rig.step()
    rig.producer.stalled = False
    rig.worker.stop()
    rig.clock.move(DRAIN_TIMEOUT)
    with pytest.raises(DrainTimeout):
        rig.step()
    rig.worker._close()
    assert rig.consumer.commits == []


# Stopping.


def stopping_after(rig: Rig, polls: int) -> None:
    """Have ``stop`` called in the idle poll of this number."""

    def idle(timeout: float) -> None:
        nonlocal polls
        rig.clock.move(timeout)
        polls -= 1
        if polls == 0:
            rig.worker.stop()

    rig.consumer.on_idle = idle


def test_stopping_delivers_commits_and_leaves_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.consumer.feed(lambda: rig.consumer.assign_now(0))
    rig.feed(*((0, offset) for offset in range(100)))
    stopping_after(rig, 2)
    rig.worker.run()
    assert rig.answers() == ok(*range(100))
    assert rig.consumer.commits[-1] == {0: 100}
    assert rig.consumer.closed
    assert rig.producer.purged


def test_stopping_finishes_the_turn_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)

    def before(_: Sequence[Request]) -> None:
        rig.feed((0, 6))
        rig.worker.stop()

    rig.scorer.before = before
    rig.consumer.feed(lambda: rig.consumer.assign_now(0))
    rig.feed((0, 5))
    rig.worker.run()
    assert rig.worker.stopping
    assert rig.answers() == ok(5)
    assert rig.consumer.commits[-1] == {0: 6}


def test_a_turn_that_is_not_finished_in_time_is_left_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SlowScorer(polls=1_000_000_000)
    rig = Rig(monkeypatch, slow, worker={"drain_timeout": 5})
    slow.attach(rig)
    slow.meanwhile = [lambda: None, rig.worker.stop]
    rig.consumer.feed(lambda: rig.consumer.assign_now(0))
    rig.feed((0, 5))
    try:
        with pytest.raises(DrainTimeout):
            rig.worker.run()
    finally:
        slow.release.set()
    assert rig.answers() == []
    assert rig.consumer.commits == []
    assert rig.consumer.closed
    assert DrainTimeout.exit_code == 1


def test_the_time_to_drain_is_one_budget_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two waits of the whole timeout would outlast whoever sends the next signal."""
    rig = Rig(monkeypatch, worker={"drain_timeout": 5})
    rig.consumer.feed(lambda: rig.consumer.assign_now(0))
    rig.feed((0, 5))
    stopping_after(rig, 2)
    rig.producer.stalled = True

    def flush(timeout: float) -> int:
        rig.producer.flushes.append(timeout)
        rig.clock.move(timeout)
        return 1

    monkeypatch.setattr(rig.producer, "flush", flush)
    rig.worker.run()
    assert sum(rig.producer.flushes) < 5 + 0.1
    assert rig.consumer.commits == []


def test_a_second_stop_does_not_give_more_time(rig: Rig) -> None:
    rig.worker.stop()
    rig.clock.move(3)
    rig.worker.stop()
    assert rig.worker._drain_time() == DRAIN_TIMEOUT - 3


@pytest.mark.parametrize("undelivered", [0, 2])
def test_what_was_not_delivered_is_told(
    rig: Rig, caplog: pytest.LogCaptureFixture, undelivered: int
) -> None:
    rig.feed(*((0, offset) for offset in range(undelivered)))
    rig.producer.stalled = True
    rig.step()
    rig.worker.stop()
    rig.worker.run()
    assert (f"{undelivered} records were not delivered" in caplog.text) is bool(undelivered)


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (
            lambda rig: rig.consumer.feed(
                error_message(KafkaError(KafkaError._FATAL, "fenced", fatal=True))
            ),
            ConsumerFailed,
        ),
        (lambda rig: setattr(rig.scorer, "before", broken), ZeroDivisionError),
    ],
)
def test_the_group_is_left_in_every_case(
    monkeypatch: pytest.MonkeyPatch, fail: Callable[[Rig], None], error: type[Exception]
) -> None:
    rig = Rig(monkeypatch)
    rig.consumer.feed(lambda: rig.consumer.assign_now(0))
    rig.feed((0, 5))
    rig.consumer.feed(lambda: fail(rig))
    rig.feed((0, 6))
    with pytest.raises(error):
        rig.worker.run()
    assert rig.consumer.closed
    assert all(position == 6 for commit in rig.consumer.commits for position in commit.values())


def broken(_: Sequence[Request]) -> None:
    raise ZeroDivisionError


def test_the_ready_file_is_there_while_partitions_can_be_scored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "ready"
    rig = Rig(monkeypatch, worker={"ready_file": str(path)})
    seen: list[bool] = [path.exists()]
    rig.consumer.feed(lambda: rig.consumer.assign_now(0))
    rig.consumer.feed(lambda: seen.append(path.exists()), rig.worker.stop)
    rig.worker.run()
    assert [*seen, path.exists()] == [False, True, False]


def test_the_ready_file_goes_while_the_group_goes_on_without_the_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "ready"
    rig = Rig(monkeypatch, worker={"ready_file": str(path)})
    seen: list[bool] = []

    def look() -> None:
        seen.append(path.exists())

    rig.consumer.feed(lambda: rig.consumer.assign_now(0), look)
    rig.consumer.feed(lambda: rig.consumer.lose_now(0), look)
    rig.consumer.feed(lambda: rig.consumer.assign_now(), look, rig.worker.stop)
    rig.worker.run()
    assert seen == [True, False, True]


def test_the_ready_file_is_gone_though_partitions_come_while_the_worker_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "ready"
    rig = Rig(monkeypatch, worker={"ready_file": str(path)})
    seen: list[bool] = []
    unsubscribe = rig.consumer.unsubscribe

    def unsubscribe_late() -> None:
        rig.consumer.feed(lambda: rig.consumer.assign_now(0, 1), lambda: seen.append(path.exists()))
        unsubscribe()

    monkeypatch.setattr(rig.consumer, "unsubscribe", unsubscribe_late)
    rig.consumer.feed(rig.worker.stop)
    rig.worker.run()
    assert [*seen, path.exists()] == [True, False]


# Everything at once.


def turns() -> Iterator[list[Message]]:
    """Requests of every kind, mixed, three partitions in turn."""
    kinds: list[Headers] = [
        [("content-type", b"application/json")],
        [("content-type", b"application/json"), ("reply-topic", b"score-replies")],
        [("reply-topic", b"other")],
        [("deadline", b"1")],
        [("deadline", b"soon")],
    ]
    for start in range(0, 300, 30):
        yield [
            message(offset % 3, offset, headers=kinds[offset % len(kinds)])
            for offset in range(start, start + 30)
        ]


def test_every_request_gets_exactly_one_answer_and_is_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch)
    rig.start(0, 1, 2)
    for number, messages in enumerate(turns()):
        rig.consumer.feed(*messages)
        rig.producer.stalled = number % 3 == 0
        rig.step()
    rig.producer.stalled = False
    rig.step(2)
    requests = [request for request, _ in rig.answers()]
    assert sorted(requests, key=lambda name: int((name or b"").split(b"/")[2])) == [
        b"score-requests/%d/%d" % (offset % 3, offset) for offset in range(300)
    ]
    assert {status for _, status in rig.answers()} == {b"ok", b"invalid-request", b"expired"}
    assert rig.consumer.commits[-1] == {0: 298, 1: 299, 2: 300}


def test_a_scorer_that_answers_too_few_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never does; but an answer must not be given to another's request."""

    class SilentScorer(EchoScorer):
        def score(self, requests: Sequence[Request]) -> list[Answer]:
            return []

    rig = Rig(monkeypatch, SilentScorer())
    rig.start(0, 1)
    rig.feed((0, 5))
    with pytest.raises(Exception):  # noqa: B017 - whatever ends the process
        rig.step()
    assert rig.producer.sent == []
