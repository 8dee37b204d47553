"""The floor: the least that a worker can do, by hand, with nothing of the product in it.

A loop over confluent-kafka: take a batch, call the model once, produce the answers; ten times a
second wait until they are acknowledged, and commit. It serves nobody but the benchmark: a bad
request ends it, and so does a rebalance in the wrong moment.
"""

from __future__ import annotations

import signal
import sys
from itertools import count
from time import monotonic
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from benchmarks.clients import COMMIT_INTERVAL, CONSUMER, PRODUCER
from benchmarks.job import Job
from benchmarks.models import MODELS

_TAKE_TIMEOUT: Final = 0.005
"""Seconds that a batch may take to fill: it hardly ever does, with requests waiting."""


def run(job: Job) -> None:
    """Score until SIGTERM."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    predict = MODELS[job.model]()
    consumer = Consumer(
        {**CONSUMER, "bootstrap.servers": job.bootstrap, "group.id": job.group}
        | {"enable.auto.commit": False}
        | ({"isolation.level": "read_committed"} if job.exactly_once else {})
    )
    producer = Producer(
        # Called for what failed alone: that flush() left nothing says that the rest is delivered.
        {**PRODUCER, "delivery.report.only.error": True, "on_delivery": _raise}
        | {"bootstrap.servers": job.bootstrap, "message.max.bytes": 2_000_000}
        | ({"transactional.id": job.group} if job.exactly_once else {})
    )
    if job.exactly_once:
        producer.init_transactions()
    consumer.subscribe([job.requests])
    uncommitted = False
    due = 0.0
    while not stopping:
        messages = consumer.consume(job.batch, _TAKE_TIMEOUT)
        if messages:
            if job.exactly_once and not uncommitted:
                producer.begin_transaction()
            bodies = predict([message.value() or b"" for message in messages])
            for message, body in zip(messages, bodies, strict=True):
                _answer(producer, job.results, message, body)
            producer.poll(0)
            uncommitted = True
        if uncommitted and monotonic() >= due:
            _commit(consumer, producer, job)
            uncommitted = False
            due = monotonic() + COMMIT_INTERVAL
    consumer.close()


def _answer(producer: Producer, topic: str, request: Message, body: bytes) -> None:
    headers = dict(request.headers() or ())
    for attempt in count():
        try:
            producer.produce(
                topic,
                body,
                partition=request.partition() or 0,
                headers=[("correlation-id", headers["correlation-id"])],
            )
        except BufferError:
            producer.poll(0.1 if attempt else 0.01)
        else:
            return


def _commit(consumer: Consumer, producer: Producer, job: Job) -> None:
    if not job.exactly_once:
        producer.flush()
        consumer.commit(asynchronous=True)
        return
    # Everything taken is answered by now.
    producer.send_offsets_to_transaction(
        consumer.position(consumer.assignment()), consumer.consumer_group_metadata()
    )
    producer.commit_transaction()


def _raise(error: KafkaError | None, _: Message) -> None:
    if error is not None:
        raise KafkaException(error)


if __name__ == "__main__":
    run(Job.of(sys.argv[1]))
