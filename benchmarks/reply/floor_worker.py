"""The bare worker: a turn of requests, one ONNX call, their replies. No checks, no plugin."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
from confluent_kafka import Consumer, Producer

BOOTSTRAP = os.environ["FLOOR_BOOTSTRAP"]
REQUESTS = os.environ["FLOOR_REQUESTS"]
REPLIES = os.environ["FLOOR_REPLIES"]
LINGER = int(os.environ["FLOOR_LINGER"])
FLUSH = bool(os.environ.get("FLOOR_FLUSH"))
COMMIT_EVERY = 0.1


def work(model: Path, ready: Path) -> None:
    """Score with the model file until the process is ended; make ``ready`` once assigned."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    producer = Producer(
        {
            "bootstrap.servers": BOOTSTRAP,
            "linger.ms": LINGER,
            "compression.type": "lz4",
            "enable.idempotence": True,
        }
    )
    # Any: nothing is checked here, neither at run time nor by types.
    consumer: Any = Consumer(
        {
            "bootstrap.servers": BOOTSTRAP,
            "group.id": f"{REQUESTS}-workers",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([REQUESTS], on_assign=lambda *_: ready.touch())
    committed = time.monotonic()
    while True:
        first = consumer.poll(0.1)
        if first is None:
            continue
        messages = [first, *consumer.consume(511, 0)]
        wines = [np.array(orjson.loads(m.value())["data"], np.float32) for m in messages]
        qualities = session.run(None, {"wines": np.concatenate(wines)})[0].reshape(-1)
        start = 0
        for message, rows in zip(messages, wines, strict=True):
            stop = start + len(rows)
            body = orjson.dumps(qualities[start:stop], option=orjson.OPT_SERIALIZE_NUMPY)
            producer.produce(REPLIES, body, partition=0, headers=message.headers())
            start = stop
        if FLUSH:
            producer.flush(0.001)
        producer.poll(0)
        if time.monotonic() - committed >= COMMIT_EVERY:
            # At least once: what is committed is delivered.
            producer.flush()
            consumer.commit(asynchronous=True)
            committed = time.monotonic()


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
