"""Topics that change under a running worker, and topics that are not fit for it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from stream_scorer.config import Settings
from stream_scorer.kafka.topics import TopicError
from tests.conftest import wait_for_leaders
from tests.engine import running_worker, settings_for
from tests.kafka_server import MakeTopics
from tests.numbers_plugin import expected
from tests.wire import RecordReader, RequestProducer, Send

KINDS = ("requests", "results", "replies", "dead_letters")
WAIT = 30.0


@dataclass
class Place:
    """A broker, topics on it, and a worker's settings for them."""

    bootstrap: str
    names: dict[str, str]
    group: str
    admin: AdminClient

    def settings(self, delivery: str = "at_least_once", **sections: Any) -> Settings:
        return settings_for(
            self.bootstrap,
            self.names,
            kafka={
                "bootstrap.servers": self.bootstrap,
                "topic.metadata.refresh.interval.ms": 500,
                # How long a topic that is gone is taken for one that is not known yet.
                "topic.metadata.propagation.max.ms": 1000,
                "consumer": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500},
            },
            worker={"group": self.group, "delivery": delivery, "instance_id": self.group},
            **sections,
        )

    def reader(self, *kinds: str) -> RecordReader:
        names = [self.names[kind] for kind in kinds]
        return RecordReader(self.bootstrap, *names, isolation="read_committed")

    def create(self, kind: str, partitions: int, **config: str) -> None:
        topic = self.names[kind]
        new = NewTopic(topic, partitions, config=config)
        deadline = time.monotonic() + WAIT
        while True:  # a topic that was just deleted is there for a moment longer
            try:
                self.admin.create_topics([new])[topic].result(WAIT)
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                break
        wait_for_leaders(self.admin, topic, partitions)

    def delete(self, kind: str) -> None:
        topic = self.names[kind]
        self.admin.delete_topics([topic])[topic].result(WAIT)
        self.until(lambda: topic not in self.admin.list_topics(timeout=WAIT).topics, "gone")

    def until(self, there: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT
        while not there():
            assert time.monotonic() < deadline, f"not {what}"
            time.sleep(0.1)


@pytest.fixture
def place(real_kafka: str, topics: MakeTopics, unique_group: str) -> Iterator[Place]:
    names = dict(zip(KINDS, topics(2, *KINDS), strict=True))
    admin = AdminClient({"bootstrap.servers": real_kafka, "log_level": 0})
    yield Place(real_kafka, names, unique_group, admin)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_requests_topic_that_is_made_anew_is_read_from_its_beginning(
    place: Place, delivery: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stream_scorer")
    before = [Send(str(n).encode(), partition=n % 2) for n in range(40)]
    after = [Send(str(n).encode(), partition=n % 2) for n in range(100, 120)]
    with place.reader("results") as reader, running_worker(place.settings(delivery)):
        RequestProducer(place.bootstrap, place.names["requests"]).send(*before)
        records = reader.answers(request.correlation_id for request in before)
        place.delete("requests")
        place.create("requests", 2)
        RequestProducer(place.bootstrap, place.names["requests"]).send(*after)
        records += reader.answers(request.correlation_id for request in after)
        records += reader.rest()
    answered = Counter(record.correlation_id for record in records)
    assert answered == Counter(request.correlation_id for request in [*before, *after])
    by_id = {record.correlation_id: record for record in records}
    for number, request in enumerate(after, start=100):
        assert by_id[request.correlation_id].value == expected(number)
    # Not in silence: the partitions went, or their offsets were not there any more.
    assert "revoked partitions" in caplog.text or "consumer: " in caplog.text


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_partitions_that_are_added_are_served(place: Place, delivery: str) -> None:
    topic = place.names["requests"]
    with place.reader("results") as reader, running_worker(place.settings(delivery)):
        old = RequestProducer(place.bootstrap, topic)
        reader.answers(old.send(*(Send(b"1", partition=n) for n in range(2))))
        place.admin.create_partitions([NewPartitions(topic, 5)])[topic].result(WAIT)
        wait_for_leaders(place.admin, topic, 5)
        requests = [Send(str(n).encode(), partition=n % 5) for n in range(50)]
        # The first of them come before anybody has heard of their partitions.
        records = reader.answers(RequestProducer(place.bootstrap, topic).send(*requests))
        records += reader.rest()
    by_id = {record.correlation_id: record for record in records}
    assert len(records) == len(by_id) == len(requests)
    for number, request in enumerate(requests):
        record = by_id[request.correlation_id]
        assert record.value == expected(number)
        assert record.partition == number % 5 % 2, "results have two partitions"


def test_answers_find_their_partition_in_a_reply_topic_of_fewer(
    place: Place, topics: MakeTopics
) -> None:
    (narrow,) = topics(1, "narrow")
    settings = place.settings(topics={"reply_allow": [narrow]})
    producer = RequestProducer(place.bootstrap, place.names["requests"])
    headers = {"reply-topic": narrow.encode()}
    with (
        RecordReader(place.bootstrap, narrow, place.names["results"]) as reader,
        running_worker(settings),
    ):
        ids = producer.send(
            Send(b"1", partition=0, headers=headers),
            Send(b"2", partition=1, headers=headers),
            Send(b"3", partition=1, headers=headers | {"reply-partition": b"1"}),
        )
        by_id = {record.correlation_id: record for record in reader.answers(ids)}
    first, second, third = (by_id[each] for each in ids)
    assert [(first.topic, first.partition), (second.topic, second.partition)] == [(narrow, 0)] * 2
    assert (third.topic, third.status) == (place.names["results"], "invalid-request")


def test_a_reply_topic_that_goes_away_costs_only_its_answers(
    place: Place, topics: MakeTopics
) -> None:
    (doomed,) = topics(2, "doomed")
    settings = place.settings(topics={"reply_allow": [doomed]})
    producer = RequestProducer(place.bootstrap, place.names["requests"])
    headers = {"reply-topic": doomed.encode()}
    with (
        RecordReader(place.bootstrap, doomed) as replies,
        place.reader("results") as results,
        place.reader("dead_letters") as letters,
        running_worker(settings),
    ):
        replies.answers(producer.send(Send(b"1", headers=headers)))
        place.admin.delete_topics([doomed])[doomed].result(WAIT)
        place.until(lambda: doomed not in place.admin.list_topics(timeout=WAIT).topics, "gone")
        lost, good = producer.send(Send(b"2", headers=headers), Send(b"3"))
        answers = {record.correlation_id: record for record in results.answers([lost, good])}
        kept = [*letters.answers([lost]), *letters.rest()]
    assert answers[good].value == expected(3)
    assert answers[lost].status == "invalid-request"
    assert [letter.correlation_id for letter in kept] == [lost]


def test_a_missing_results_topic_is_created_where_that_is_wanted(place: Place) -> None:
    place.delete("results")
    with running_worker(place.settings(topics={"create": True, "partitions": 3})):
        with place.reader("results") as reader:
            producer = RequestProducer(place.bootstrap, place.names["requests"])
            ids = producer.send(Send(b"1", partition=0))
            assert reader.answers(ids)[0].value == expected(1)
        found = place.admin.list_topics(timeout=WAIT).topics[place.names["results"]]
        assert len(found.partitions) == 3


def test_a_missing_results_topic_is_named_where_none_is_created(place: Place) -> None:
    place.delete("results")
    with (
        pytest.raises(TopicError, match=place.names["results"]),
        running_worker(place.settings(topics={"create": False})),
    ):
        pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_a_compacted_topic_is_refused(place: Place, kind: str, policy: str) -> None:
    place.delete(kind)
    place.create(kind, 1, **{"cleanup.policy": policy})
    with (
        pytest.raises(TopicError, match=f"{place.names[kind]} is compacted"),
        running_worker(place.settings()),
    ):
        pass
