from __future__ import annotations

from types import SimpleNamespace

import pytest

from stream_scorer import config
from stream_scorer.kafka.routes import LOOK_AGAIN_AFTER, REMEMBERED, Routes
from stream_scorer.kafka.topics import TopicError
from tests.fakes import FakeClock, FakeTopics, request

KNOWN = {"score-results": 4, "score-replies": 3, "score-requests.dlq": 2}


def routes(topics: FakeTopics, *allowed: str) -> Routes:
    return Routes(config.Topics(reply_allow=allowed), topics)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fresh = FakeClock()
    monkeypatch.setattr("stream_scorer.kafka.routes.time", SimpleNamespace(monotonic=fresh))
    return fresh


@pytest.mark.parametrize(
    ("topic", "partition", "refusal"),
    [
        (None, None, None),
        ("score-replies", None, None),
        ("score-replies", 0, None),
        ("score-replies", 2, None),
        ("team-a", 0, None),
        (None, 0, "reply-partition was sent without reply-topic"),
        ("score-replies", 3, "reply topic 'score-replies' has 3 partitions, not a partition 3"),
        ("score-results", 0, "answers may not be sent to topic 'score-results'"),
        ("score-requests", 0, "answers may not be sent to topic 'score-requests'"),
        ("score-requests.dlq", 0, "answers may not be sent to topic 'score-requests.dlq'"),
        ("other", None, "answers may not be sent to topic 'other'"),
        ("team-b", None, "reply topic 'team-b' does not exist"),
        ("team-b", 0, "reply topic 'team-b' does not exist"),
    ],
)
def test_a_reply_address_is_allowed_and_exists_or_is_refused(
    topic: str | None, partition: int | None, refusal: str | None
) -> None:
    found = routes(FakeTopics({**KNOWN, "team-a": 1}), "team-*").refusal(
        request(reply_topic=topic, reply_partition=partition)
    )
    assert found == refusal


def test_a_topic_that_is_not_allowed_is_not_even_looked_up() -> None:
    topics = FakeTopics(KNOWN, {"other": 1})
    routes(topics).refusal(request(reply_topic="other"))
    assert topics.looked_up == []


@pytest.mark.parametrize(("partition", "beside"), [(0, 0), (3, 3), (4, 0), (7, 3)])
def test_a_result_goes_to_the_partition_that_matches_the_requests(
    partition: int, beside: int
) -> None:
    assert routes(FakeTopics(KNOWN)).address(request(partition)) == ("score-results", beside)


@pytest.mark.parametrize(("partition", "beside"), [(0, 0), (2, 2), (3, 0), (7, 1)])
def test_a_reply_without_a_partition_keeps_the_order_too(partition: int, beside: int) -> None:
    found = routes(FakeTopics(KNOWN)).address(request(partition, reply_topic="score-replies"))
    assert found == ("score-replies", beside)


def test_a_reply_goes_where_it_was_asked_for() -> None:
    asked = request(1, reply_topic="score-replies", reply_partition=2)
    assert routes(FakeTopics(KNOWN)).address(asked) == ("score-replies", 2)


def test_dead_letters_keep_the_order_too() -> None:
    found = routes(FakeTopics(KNOWN)).beside(request(3), "score-requests.dlq")
    assert found == 1


def test_a_topic_that_vanished_still_has_a_partition_to_try() -> None:
    assert routes(FakeTopics({})).address(request(3)) == ("score-results", 0)


def test_what_is_known_is_not_looked_up() -> None:
    topics = FakeTopics(KNOWN)
    found = routes(topics)
    for partition in range(3):
        asked = request(partition, reply_topic="score-replies", reply_partition=partition)
        assert found.refusal(asked) is None
        found.address(asked)
        found.address(request(partition))
    assert topics.looked_up == []


def test_a_new_topic_and_new_partitions_are_found(clock: FakeClock) -> None:
    topics = FakeTopics(KNOWN, {"score-replies": 8, "team-a": 1})
    found = routes(topics, "team-a")
    assert found.refusal(request(reply_topic="score-replies", reply_partition=7)) is None
    assert found.refusal(request(reply_topic="team-a")) is None
    assert topics.looked_up == ["score-replies", "team-a"]


def test_what_is_missing_is_asked_for_again_only_after_a_while(clock: FakeClock) -> None:
    """A flood of requests for a topic that is not there must not become a flood of look-ups."""
    topics = FakeTopics(KNOWN)
    found = routes(topics, "team-a")
    asked = request(reply_topic="team-a")
    for _ in range(3):
        assert found.refusal(asked) is not None
        clock.move(LOOK_AGAIN_AFTER / 4)
    assert topics.looked_up == ["team-a"]
    topics.cluster["team-a"] = 1
    clock.move(LOOK_AGAIN_AFTER)
    assert found.refusal(asked) is None
    assert topics.looked_up == ["team-a", "team-a"]


def test_a_broker_that_does_not_answer_leaves_what_was_known(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request with a partition that is not there must not end the worker."""
    topics = FakeTopics(KNOWN)

    def timed_out(topic: str) -> int:
        raise TopicError(f"topic {topic}: Timed out")

    monkeypatch.setattr(topics, "look_up", timed_out)
    found = routes(topics, "team-a")
    asked = request(reply_topic="score-replies", reply_partition=99)
    assert "not a partition 99" in (found.refusal(asked) or "")
    # Of a topic that was never seen nothing is known: the broker's fault, not the request's.
    with pytest.raises(TopicError):
        found.refusal(request(reply_topic="team-a"))


def test_the_topics_that_callers_make_up_are_not_all_remembered(clock: FakeClock) -> None:
    topics = FakeTopics(KNOWN)
    found = routes(topics, "team-*")
    for number in range(REMEMBERED + 10):
        found.refusal(request(reply_topic=f"team-{number}"))
    assert len(found._look_again) <= REMEMBERED
