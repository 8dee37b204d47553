"""The bare facade: a request over Kafka and back, on the HTTP stack of the product, and no more.

No bounds, no errors, no headers but the correlation id. Run by gunicorn's ``asgi`` worker.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from typing import Any

import falcon.asgi
from confluent_kafka import Consumer, Producer, TopicPartition

BOOTSTRAP = os.environ["FLOOR_BOOTSTRAP"]
REQUESTS = os.environ["FLOOR_REQUESTS"]
REPLIES = os.environ["FLOOR_REPLIES"]
LINGER = int(os.environ["FLOOR_LINGER"])
FLUSH = bool(os.environ.get("FLOOR_FLUSH"))


class Predict:
    """The one resource, and the middleware that starts the Kafka clients in the serving process."""

    def __init__(self) -> None:
        self.pending: dict[bytes, asyncio.Future[bytes]] = {}
        self.numbers = itertools.count()
        self.hurry = threading.Event()

    async def process_startup(self, scope: Any, event: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.producer = Producer(
            {
                "bootstrap.servers": BOOTSTRAP,
                "linger.ms": LINGER,
                "compression.type": "lz4",
                "delivery.report.only.error": True,
            }
        )
        threading.Thread(target=self.read_replies, daemon=True).start()
        if FLUSH:
            threading.Thread(target=self.flush, daemon=True).start()

    def read_replies(self) -> None:
        # Any: nothing is checked here, neither at run time nor by types.
        consumer: Any = Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": "floor-facade"})
        consumer.assign([TopicPartition(REPLIES, 0, 0)])
        while True:
            first = consumer.poll(1)
            if first is not None:
                messages = [first, *consumer.consume(500, 0)]
                replies = [(message.headers()[0][1], message.value()) for message in messages]
                self.loop.call_soon_threadsafe(self.resolve, replies)
            # What is delivered leaves the queue only when this is asked for.
            self.producer.poll(0)

    def resolve(self, replies: list[tuple[bytes, bytes]]) -> None:
        for correlation_id, body in replies:
            self.pending.pop(correlation_id).set_result(body)

    def flush(self) -> None:
        while True:
            self.hurry.wait()
            self.hurry.clear()
            # The shortest that is not rounded to none: it sends what lingers.
            self.producer.flush(0.001)

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        payload = await req.stream.read()
        correlation_id = b"%d" % next(self.numbers)
        future = self.pending[correlation_id] = self.loop.create_future()
        self.producer.produce(REQUESTS, payload, headers=[("correlation-id", correlation_id)])
        if FLUSH:
            self.hurry.set()
        resp.content_type = "application/json"
        resp.data = await future


predict = Predict()
app = falcon.asgi.App(middleware=[predict])
app.add_route("/predict", predict)
