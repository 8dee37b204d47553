"""Workers as processes on a broker: killed, stopped, slow, and started with what cannot work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import raw_headers
from tests.engine import ROOT, environment_for, numbers_conf, process, worker_process
from tests.kafka_server import KafkaServer, MakeTopics, free_ports
from tests.numbers_plugin import expected
from tests.wire import Record, RecordReader, RequestProducer, Send

KINDS = ("requests", "results", "replies", "dead_letters")


@pytest.fixture
def names(topics: MakeTopics) -> dict[str, str]:
    return dict(zip(KINDS, topics(4, *KINDS), strict=True))


@pytest.fixture
def conf(tmp_path: Path) -> str:
    return str(numbers_conf(tmp_path))


def test_a_killed_worker_loses_nothing(
    kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    environment = environment_for(
        kafka, names, worker={"group": unique_group, "max_turn": 200, "max_batch_size": 50}
    )
    requests = [Send(str(n).encode(), partition=n % 4) for n in range(6000)]
    sent = {request.correlation_id: request for request in requests}
    producer = RequestProducer(kafka, names["requests"])
    with RecordReader(kafka, names["results"]) as reader:
        with worker_process(tmp_path, "first", environment, conf) as first:
            producer.send(*requests[:3000])
            seen = reader.read(200)
            first.send_signal(signal.SIGKILL)
            first.popen.wait()
        producer.send(*requests[3000:])
        with worker_process(tmp_path, "second", environment, conf):
            answered = {record.correlation_id for record in seen}
            seen += reader.answers(sent.keys() - answered)
    assert Counter(r.status for r in seen) == {"ok": len(seen)}
    for record in seen:
        payload = sent[record.correlation_id].payload
        assert payload is not None
        assert record.value == expected(int(payload))
    # What was scored and not committed is scored again: of these few, in the 0.1 s between two
    # commits, it may be all. tests/faults bounds it by the turns in flight.
    assert len(seen) - len(sent) <= 3000


def test_sigterm_under_load_answers_nothing_twice(
    kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    environment = environment_for(kafka, names, worker={"group": unique_group, "max_turn": 100})
    sent: list[str] = []
    seen: list[Record] = []
    enough = threading.Event()

    def load() -> None:
        # A second's work is always waiting, whatever the machine can do.
        producer = RequestProducer(kafka, names["requests"])
        while not enough.wait(0.02):
            if len(sent) - len(seen) < 1000:
                slow = (Send(b"slow:0.001", partition=n % 4) for n in range(200))
                sent.extend(producer.send(*slow))

    with RecordReader(kafka, names["results"]) as reader:
        loading = threading.Thread(target=load)
        loading.start()
        try:
            for round_ in range(4):
                with worker_process(tmp_path, f"worker-{round_}", environment, conf) as worker:
                    seen += reader.read(300)
                    number = signal.SIGTERM if round_ % 2 == 0 else signal.SIGINT
                    assert worker.stop(number) == 0, worker.text
        finally:
            enough.set()
            loading.join()
        with worker_process(tmp_path, "last", environment, conf):
            seen += reader.answers(set(sent) - {record.correlation_id for record in seen})
            seen += reader.rest()
    counts = Counter(record.correlation_id for record in seen)
    assert len(counts) == len(sent)
    assert set(counts.values()) == {1}, "answered twice"


def test_a_stopped_worker_leaves_the_group_at_once(
    kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    """Its partitions are another's long before its session would have timed out."""
    environment = environment_for(
        kafka,
        names,
        worker={"group": unique_group},
        kafka={"bootstrap.servers": kafka, "consumer": {"session.timeout.ms": 60_000}},
    )
    producer = RequestProducer(kafka, names["requests"])
    with ExitStack() as stack:
        reader = stack.enter_context(RecordReader(kafka, names["results"]))
        first = stack.enter_context(worker_process(tmp_path, "first", environment, conf))
        stack.enter_context(worker_process(tmp_path, "second", environment, conf))
        assert first.stop() == 0, first.text
        ids = producer.send(*(Send(b"1", partition=n) for n in range(4)))
        assert len(reader.answers(ids, timeout=30)) == 4


def test_a_worker_whose_name_another_takes_says_so_and_ends(
    real_kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    # More than a process that ends is waited for: there is nothing to drain.
    worker = {"delivery": "exactly_once", "instance_id": "twin", "drain_timeout": 60}
    environment = environment_for(real_kafka, names, worker={"group": unique_group, **worker})
    producer = RequestProducer(real_kafka, names["requests"])
    with ExitStack() as stack:
        reader = stack.enter_context(RecordReader(real_kafka, names["results"]))
        first = stack.enter_context(worker_process(tmp_path, "first", environment, conf))
        second = stack.enter_context(worker_process(tmp_path, "second", environment, conf))
        assert first.wait() == 1
        assert "another process took over as 'twin-0'" in first.text.splitlines()[-1]
        ids = producer.send(*(Send(b"1", partition=n) for n in range(4)))
        assert len(reader.answers(ids)) == 4
        assert second.stop() == 0, second.text


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_worker_stops_though_the_broker_is_gone(
    delivery: str,
    kafka_server: KafkaServer,
    topics: MakeTopics,
    unique_group: str,
    conf: str,
    tmp_path: Path,
) -> None:
    names = dict(zip(KINDS, topics(4, *KINDS), strict=True))
    worker = {"group": unique_group, "delivery": delivery, "drain_timeout": 5}
    environment = environment_for(kafka_server.bootstrap, names, worker=worker)
    with (
        RecordReader(kafka_server.bootstrap, names["results"]) as reader,
        worker_process(tmp_path, "worker", environment, conf) as process,
    ):
        producer = RequestProducer(kafka_server.bootstrap, names["requests"])
        reader.answers(producer.send(*(Send(b"1", partition=n) for n in range(4))))
        kafka_server.kill()
        process.stop()
        kafka_server.start()


def test_a_turn_that_is_not_done_in_drain_timeout_is_left_to_others(
    kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    environment = environment_for(
        kafka, names, worker={"group": unique_group, "drain_timeout": 1, "max_turn": 1}
    )
    producer = RequestProducer(kafka, names["requests"])
    with RecordReader(kafka, names["results"]) as reader:
        with worker_process(tmp_path, "first", environment, conf) as first:
            begun = tmp_path / "begun"
            (slow,) = producer.send(Send(f"slow:12:{begun}".encode()))
            first.wait_for("the turn", begun.exists)
            assert first.stop() == 1
            assert "drain_timeout" in first.text
        with worker_process(tmp_path, "second", environment, conf):
            (answer,) = reader.answers([slow])
    assert answer.value == b"slow"


def test_a_worker_under_way_survives_a_header_name_that_is_not_utf_8(
    kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    """Also once its loop is hot, when CPython leaves out the check that would tell of it."""
    environment = environment_for(kafka, names, worker={"group": unique_group})
    producer = RequestProducer(kafka, names["requests"])
    with (
        RecordReader(kafka, names["results"]) as reader,
        worker_process(tmp_path, "worker", environment, conf) as worker,
    ):
        reader.answers(producer.send(*(Send(b"1", partition=0) for _ in range(500))))
        for _ in range(3):
            raw_headers.produce(
                kafka, names["requests"], b"1", [(b"\xff", b"x"), (b"content-type", b"text/plain")]
            )
        (bad, *_) = reader.read(3)
        reader.answers(producer.send(Send(b"2", partition=0)))
        assert worker.popen.poll() is None, worker.text
    assert bad.status == "invalid-request"


def test_a_broker_that_is_not_there_is_named_and_waited_for(conf: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    environment = environment_for(f"127.0.0.1:{port}", {}, worker={"startup_timeout": 2})
    with process(tmp_path / "log", "worker", "--conf", conf, environment=environment) as worker:
        assert worker.wait() == 1
        (line,) = [text for text in worker.text.splitlines() if text.startswith("stream-scorer:")]
    assert f"cannot reach Kafka at 127.0.0.1:{port}" in line
    assert "Connection refused" in line


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"kafka": {"no.such.property": 1}}, "no.such.property"),
        ({"worker": {"max_turn": 0}}, "@ worker.max_turn"),
        ({"worker": {"delivery": "at_most_once"}}, "@ worker.delivery"),
        ({"kafka": {"group.id": "x"}}, "worker.group"),
    ],
)
def test_a_wrong_setting_ends_the_worker_at_once(
    sections: dict[str, object], message: str, conf: str, tmp_path: Path
) -> None:
    environment = environment_for("127.0.0.1:1", {}, **sections)
    with process(tmp_path / "log", "worker", "--conf", conf, environment=environment) as worker:
        assert worker.wait() == 2
        (line,) = [text for text in worker.text.splitlines() if text.startswith("stream-scorer:")]
    assert message in line


def test_missing_topics_are_created(
    real_kafka: str, unique_group: str, conf: str, tmp_path: Path
) -> None:
    names = {kind: f"{unique_group}-{kind}" for kind in KINDS}
    environment = environment_for(
        real_kafka,
        names,
        worker={"group": unique_group},
        topics={"create": True, "partitions": 3},
    )
    with worker_process(tmp_path, "worker", environment, conf):
        producer = RequestProducer(real_kafka, names["requests"])
        with RecordReader(real_kafka, names["results"]) as reader:
            ids = producer.send(*(Send(b"7", partition=n) for n in range(3)))
            assert {record.partition for record in reader.answers(ids)} == {0, 1, 2}


def test_send_collects_the_answers(
    kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    environment = environment_for(kafka, names, worker={"group": unique_group})
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("5")
    bad.write_text("no number")
    out = tmp_path / "out"
    with worker_process(tmp_path, "worker", environment, conf):
        one = _send(environment, good)
        many = _send(environment, good, bad, "--count", "30", "--out", str(out))
    assert (one.returncode, one.stdout.strip()) == (0, "16"), one.stderr
    assert many.returncode == 1
    assert "30 ok" in many.stderr
    assert "30 invalid-payload" in many.stderr
    bodies = sorted(out.glob("*-good*"))
    assert len(bodies) == 30
    assert {path.read_bytes() for path in bodies} == {b"16"}


def _send(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "stream_scorer", "send"),
            *map(str, arguments),
            *("--content-type", "text/plain"),
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
