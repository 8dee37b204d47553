"""Quix Streams: a StreamingDataFrame from topic to topic, one ONNX call a message."""

from __future__ import annotations

import sys
import tempfile

from quixstreams import Application

from benchmarks.clients import CONSUMER, PRODUCER
from benchmarks.job import Job
from benchmarks.models import MODELS


def run(job: Job) -> None:
    """Score until SIGTERM."""
    # commit_interval stays at its default of 5 s: it waits for each commit, and ten of them a
    # second, as everybody else makes, would more than halve its rate.
    predict = MODELS[job.model]()
    app = Application(
        broker_address=job.bootstrap,
        consumer_group=job.group,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once" if job.exactly_once else "at-least-once",
        consumer_extra_config={k: v for k, v in CONSUMER.items() if k != "auto.offset.reset"},
        producer_extra_config=PRODUCER,
        state_dir=tempfile.mkdtemp(prefix="stream-scorer-quix-"),
        loglevel="WARNING",
    )
    requests = app.topic(job.requests, value_deserializer="bytes")
    results = app.topic(job.results, value_serializer="bytes")
    # A message's headers go along to its result.
    app.dataframe(requests).apply(lambda payload: predict([payload])[0]).to_topic(results)
    app.run()


if __name__ == "__main__":
    run(Job.of(sys.argv[1]))
