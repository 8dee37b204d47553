"""The echo worker of the facade's tests answers as the wire contract says."""

from __future__ import annotations

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.echo_worker import EchoWorker
from tests.kafka_server import MakeTopics


def test_it_answers_at_the_reply_address_with_the_correlation_id(
    embedded_broker: str, topics: MakeTopics
) -> None:
    requests, replies = topics(4, "requests", "replies")
    producer = Producer({"bootstrap.servers": embedded_broker, "log_level": 0})
    consumer = Consumer(
        {"bootstrap.servers": embedded_broker, "group.id": "test", "fetch.wait.max.ms": 5}
    )
    consumer.assign([TopicPartition(replies, 2, OFFSET_BEGINNING)])
    producer.produce(
        requests,
        b"payload",
        headers=[("correlation-id", b"me"), ("reply-topic", replies), ("reply-partition", b"2")],
    )
    producer.flush(10)
    with EchoWorker(embedded_broker, requests):
        message = consumer.poll(30)
    consumer.close()
    assert message is not None
    assert message.error() is None
    headers = dict(message.headers() or [])
    assert (message.value(), headers["correlation-id"], headers["status"]) == (
        b"payload",
        b"me",
        b"ok",
    )
