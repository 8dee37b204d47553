"""FastStream: a batch subscriber that acknowledges once the answers are delivered."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker, KafkaMessage

from benchmarks.clients import CONSUMER, PRODUCER
from benchmarks.job import Job
from benchmarks.models import MODELS


async def run(job: Job) -> None:
    """Score until SIGTERM."""
    predict = MODELS[job.model]()
    broker = KafkaBroker(job.bootstrap, config={**CONSUMER, **PRODUCER}, logger=None)

    async def score(message: KafkaMessage) -> None:
        raw: Any = message.raw_message
        bodies = predict([item.value() for item in raw])
        sent = [
            await broker.publish(
                body,
                job.results,
                partition=item.partition(),
                headers={"correlation-id": dict(item.headers())["correlation-id"].decode()},
                no_confirm=True,
            )
            for item, body in zip(raw, bodies, strict=True)
        ]
        await asyncio.gather(*sent)

    broker.subscriber(
        job.requests,
        group_id=job.group,
        auto_offset_reset="earliest",
        batch=True,
        max_records=job.batch,
        ack_policy=AckPolicy.NACK_ON_ERROR,
        # The payloads are decoded above, as everywhere else.
        decoder=_as_it_is,
    )(score)
    await FastStream(broker, logger=None).run()


async def _as_it_is(message: KafkaMessage) -> Any:
    return message.body


if __name__ == "__main__":
    asyncio.run(run(Job.of(sys.argv[1])))
