"""Memory stays bounded however much is waiting: resident size while a backlog is worked off."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.engine import Process, environment_for, numbers_conf, worker_process
from tests.kafka_server import MakeTopics
from tests.wire import RecordReader, RequestProducer, Send

KINDS = ("requests", "results", "replies", "dead_letters")
REQUESTS = 12_000
PAYLOAD = 50_000
MiB = 1024 * 1024

BOUND = 200 * MiB
"""Growth allowed: fetch queue and one fetch (16 + 16), turn in and out (16 + 16, and a chunk of
256 payloads over each), the producer's queue (64) and librdkafka's and Python's own copies."""

PLUGIN = """
import time
from stream_scorer import plugins

class Plugin(plugins.Plugin):
    content_types = ("text/plain",)
    def load_model(self, model_uri): return None
    def decode(self, payload, content_type): return payload
    def predict(self, model, instances):
        time.sleep(0.0005 * len(instances))
        return instances
    def encode(self, prediction, accept): return prediction, "text/plain"
"""


def resident(process: Process) -> int:
    """Resident size in bytes."""
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    (line,) = [text for text in status.splitlines() if text.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_backlog_of_600_mb_does_not_grow_a_worker(
    delivery: str, real_kafka: str, topics: MakeTopics, unique_group: str, tmp_path: Path
) -> None:
    names = dict(zip(KINDS, topics(4, *KINDS), strict=True))
    conf = numbers_conf(tmp_path)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    environment = {
        **environment_for(real_kafka, names, worker={"group": unique_group, "delivery": delivery}),
        "SCORER_PLUGIN": str(plugin),
    }
    producer = RequestProducer(real_kafka, names["requests"])
    ids = producer.send(*(Send(b"x" * PAYLOAD, partition=n % 4) for n in range(REQUESTS)))
    missing = set(ids)
    with (
        RecordReader(real_kafka, names["results"], isolation="read_committed") as reader,
        worker_process(tmp_path, "worker", environment, str(conf)) as worker,
    ):
        before = resident(worker)
        sizes: list[int] = []
        sampled = 0.0
        while missing:
            missing -= {record.correlation_id for record in reader.poll(0.5)}
            if time.monotonic() - sampled >= 0.5:
                sampled = time.monotonic()
                sizes.append(resident(worker))
            assert worker.popen.poll() is None, worker.text
    told = ", ".join(f"{size / MiB:.0f}" for size in sizes)
    sys.stdout.write(f"{delivery}: {before / MiB:.0f} MiB before, then each 0.5 s: {told}\n")
    assert max(sizes) - before < BOUND
