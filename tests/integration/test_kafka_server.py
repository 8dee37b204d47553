"""The broker under the tests keeps what a test about faults rests on."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer
from confluent_kafka.admin import AdminClient

from tests.kafka_server import (
    Broker,
    KafkaServer,
    KafkaUnavailable,
    MakeTopics,
    answers,
    free_ports,
    jars,
)

COUNT = 100
TIMEOUT = 60.0


def produce(bootstrap: str, topic: str, start: int, stop: int) -> None:
    """Produce the numbers as payloads; return when each has been acknowledged."""
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "log_level": 0})
    failed: list[object] = []

    def delivered(error: object, message: Message) -> None:
        if error is not None:
            failed.append(error)

    for number in range(start, stop):
        producer.produce(topic, str(number).encode(), on_delivery=delivered)
    assert producer.flush(TIMEOUT) == 0
    assert failed == []


def consume(bootstrap: str, topic: str, group: str, count: int) -> list[int]:
    """The first ``count`` payloads of the topic, sorted, and what came with them."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 10,
            "log_level": 0,
        }
    )
    consumer.subscribe([topic])
    numbers: list[int] = []
    deadline = time.monotonic() + TIMEOUT
    try:
        while len(numbers) < count and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is None or message.error() is not None:
                continue
            value = message.value()
            assert value is not None
            numbers.append(int(value))
    finally:
        consumer.close()
    return sorted(numbers)


def partitions(bootstrap: str, topic: str) -> int:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    return len(admin.list_topics(topic, timeout=TIMEOUT).topics[topic].partitions)


def test_round_trip(broker: Broker, topics: MakeTopics, unique_group: str) -> None:
    (topic,) = topics(4, "numbers")
    produce(broker.bootstrap, topic, 0, COUNT)
    assert consume(broker.bootstrap, topic, unique_group, COUNT) == list(range(COUNT))


def test_topics_have_the_partitions_asked_for(real_kafka: str, topics: MakeTopics) -> None:
    few, fewer = topics(3, "few", "fewer")
    assert [partitions(real_kafka, few), partitions(real_kafka, fewer)] == [3, 3]


def test_topics_of_the_mock_cluster_have_four(embedded_broker: str, topics: MakeTopics) -> None:
    (topic,) = topics(4, "any")
    assert partitions(embedded_broker, topic) == 4
    with pytest.raises(ValueError, match="4 partitions"):
        topics(3, "any")


def test_killed_or_restarted_it_keeps_what_it_acknowledged(
    kafka_server: KafkaServer, topics: MakeTopics, unique_group: str
) -> None:
    (topic,) = topics(4, "numbers")
    address = kafka_server.bootstrap
    produce(address, topic, 0, COUNT)
    kafka_server.kill()
    assert not kafka_server.running
    assert not answers(address)
    kafka_server.start()
    assert kafka_server.bootstrap == address
    produce(address, topic, COUNT, 2 * COUNT)
    kafka_server.restart()
    assert consume(address, topic, unique_group, 2 * COUNT) == list(range(2 * COUNT))


def test_paused_it_answers_nothing_until_it_is_resumed(
    kafka_server: KafkaServer, topics: MakeTopics
) -> None:
    (topic,) = topics(4, "numbers")
    address = kafka_server.bootstrap
    kafka_server.pause()
    assert kafka_server.running
    assert not answers(address)
    producer = Producer({"bootstrap.servers": address, "log_level": 0})
    reports: list[object] = []
    producer.produce(topic, b"waits", on_delivery=lambda error, _: reports.append(error))
    assert producer.flush(1) == 1
    kafka_server.resume()
    assert producer.flush(TIMEOUT) == 0
    assert reports == [None]


def test_it_gives_up_a_port_taken_meanwhile_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        free = free_ports(3)
        offers = iter([[taken, free[0]], free[1:]])
        monkeypatch.setattr("tests.kafka_server.free_ports", lambda _: next(offers))
        try:
            server = KafkaServer()
        except KafkaUnavailable as lack:
            pytest.skip(f"needs a Kafka of its own: {lack}")
        with server:
            assert server.bootstrap == f"127.0.0.1:{free[1]}"
            assert answers(server.bootstrap)
        assert not server.running
        assert not server.folder.exists()


def test_jars_of_a_broken_download_are_not_taken_for_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text(
        '#!/bin/sh\nfor last; do :; done\nmkdir "${last#*=}" && touch "${last#*=}/half.jar"\n'
        "echo '[ERROR] the connection broke'\nexit 1\n",
        encoding="utf-8",
    )
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{maven.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        with pytest.raises(KafkaUnavailable, match="the connection broke"):
            jars()
    assert list((tmp_path / "cache" / "stream-scorer").iterdir()) == []
