"""Several workers under one supervisor, as processes on a broker."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine import environment_for, numbers_conf, process, worker_process
from tests.kafka_server import MakeTopics, free_ports
from tests.numbers_plugin import expected
from tests.wire import RecordReader, RequestProducer, Send

KINDS = ("requests", "results", "replies", "dead_letters")
PARTITIONS = 6
STARTED = re.compile(r"worker (\d) started, process (\d+)")
WAIT = 60.0


@pytest.fixture
def names(topics: MakeTopics, real_kafka: str) -> dict[str, str]:
    return dict(zip(KINDS, topics(PARTITIONS, *KINDS), strict=True))


@pytest.fixture
def conf(tmp_path: Path) -> str:
    return str(numbers_conf(tmp_path))


def sends(count: int, start: int = 0) -> list[Send]:
    return [Send(str(n).encode(), partition=n % PARTITIONS) for n in range(start, start + count)]


def supervised(
    bootstrap: str, names: dict[str, str], group: str, protocol: str = "classic", **worker: Any
) -> dict[str, str]:
    # Of the newer protocol, session and heartbeats are the broker's.
    newer = {"kafka": {"consumer": {"group.protocol": protocol}}}
    return environment_for(
        bootstrap,
        names,
        worker={"group": group, "instance_id": group, "processes": 3, "max_turn": 50, **worker},
        **(newer if protocol == "consumer" else {}),
    )


def runs(pid: int) -> bool:
    """Whether a process does anything any more; one that nobody waits for is a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def until(there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not there():
        assert time.monotonic() < deadline, f"not {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_one_that_is_killed_is_started_again_and_nothing_is_lost(
    real_kafka: str,
    names: dict[str, str],
    unique_group: str,
    conf: str,
    tmp_path: Path,
    delivery: str,
) -> None:
    environment = supervised(real_kafka, names, unique_group, delivery=delivery)
    requests = sends(3000)
    producer = RequestProducer(real_kafka, names["requests"])
    with (
        RecordReader(real_kafka, names["results"], isolation="read_committed") as reader,
        worker_process(tmp_path, "all", environment, conf) as workers,
    ):
        children = {slot: int(pid) for slot, pid in STARTED.findall(workers.text)}
        assert sorted(children) == ["0", "1", "2"]
        producer.send(*requests[:1500])
        records = reader.read(100)
        os.kill(children["1"], signal.SIGKILL)
        producer.send(*requests[1500:])
        seen = {record.correlation_id for record in records}
        records += reader.answers({r.correlation_id for r in requests} - seen)
        workers.wait_for("restart", lambda: len(STARTED.findall(workers.text)) == 4)
        assert "worker 1 died (signal SIGKILL)" in workers.text
        again = int(STARTED.findall(workers.text)[-1][1])
        assert workers.stop() == 0, workers.text
    assert not any(runs(pid) for pid in [*children.values(), again])
    counts = Counter(record.correlation_id for record in records)
    if delivery == "exactly_once":
        assert set(counts.values()) == {1}
    sent = {request.correlation_id: request.payload for request in requests}
    for record in records:
        assert record.value == expected(int(sent[record.correlation_id] or b""))
    assert {record.partition for record in records} == set(range(PARTITIONS))


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_drain_answers_nothing_twice(
    real_kafka: str,
    names: dict[str, str],
    unique_group: str,
    conf: str,
    tmp_path: Path,
    protocol: str,
) -> None:
    environment = supervised(real_kafka, names, unique_group, protocol=protocol)
    requests = sends(5000)
    RequestProducer(real_kafka, names["requests"]).send(*requests)
    with RecordReader(real_kafka, names["results"]) as reader:
        with worker_process(tmp_path, "first", environment, conf) as workers:
            records = reader.read(1)
            assert workers.stop() == 0, workers.text
        records += reader.rest()
        with worker_process(tmp_path, "second", environment, conf):
            answered = {record.correlation_id for record in records}
            records += reader.answers({r.correlation_id for r in requests} - answered)
            records += reader.rest()
    assert Counter(r.correlation_id for r in records) == Counter(r.correlation_id for r in requests)


def test_workers_end_by_themselves_when_their_supervisor_is_killed(
    real_kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    environment = supervised(real_kafka, names, unique_group)
    with worker_process(tmp_path, "all", environment, conf) as workers:
        children = [int(pid) for _, pid in STARTED.findall(workers.text)]
        try:
            workers.send_signal(signal.SIGKILL)
            workers.popen.wait()
            until(lambda: not any(runs(pid) for pid in children), "ended")
        finally:
            for pid in filter(runs, children):
                os.kill(pid, signal.SIGKILL)
        assert workers.text.count("the supervisor is gone") == 3
        assert workers.text.count("stopped") == 3, "each drained"


def test_one_port_serves_the_metrics_of_all(
    real_kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    environment = supervised(
        real_kafka, names, unique_group, metrics_port=port, metrics_host="127.0.0.1"
    )
    with (
        RecordReader(real_kafka, names["results"]) as reader,
        worker_process(tmp_path, "all", environment, conf),
    ):
        producer = RequestProducer(real_kafka, names["requests"])
        reader.answers(producer.send(*sends(600)))
        url = f"http://127.0.0.1:{port}"
        for probe in ("livez", "readyz"):
            with urllib.request.urlopen(f"{url}/{probe}", timeout=10) as answer:  # noqa: S310
                assert answer.status == 200

        def answered() -> dict[str, float]:
            with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310
                text = answer.read().decode()
            found = re.findall(r"^scorer_requests_total{([^}]*)} (.*)$", text, re.MULTILINE)
            return {labels: float(value) for labels, value in found}

        until(lambda: sum(answered().values()) == 600, "counted")
        assert sum(value for labels, value in answered().items() if 'status="ok"' in labels) == 600
        slots = {re.search(r'slot="(\d)"', labels)[1] for labels in answered()}  # type: ignore[index]
        assert slots <= {"0", "1", "2"}


def test_workers_that_cannot_start_end_with_their_exit_code(
    kafka: str, tmp_path: Path, conf: str
) -> None:
    environment = environment_for(kafka, {}, worker={"processes": 3})
    environment["SCORER_PLUGIN"] = "no/such/plugin.py"
    with process(tmp_path / "log", "worker", "--conf", conf, environment=environment) as workers:
        assert workers.wait() == 2
        assert "cannot start (exit code 2)" in workers.text
        assert "no/such/plugin.py" in workers.text
