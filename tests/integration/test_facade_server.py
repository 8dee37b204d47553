"""The facade as it runs: gunicorn in a process of its own, on the session's Kafka."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_END, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.echo_worker import Asked, EchoWorker, Sent, reply
from tests.facade_server import PATIENCE, STOP_WITHIN, Answer, Server, Start, Work, until
from tests.kafka_server import KafkaServer, free_ports


def silent(_asked: Asked) -> list[Sent]:
    return []


# ---- scoring ----------------------------------------------------------------------------------


def test_a_payload_goes_to_the_worker_and_its_answer_comes_back(start: Start, work: Work) -> None:
    worker = work()
    server = start()
    payload = bytes(range(256)) * 3000
    answer = server.predict(payload, Content_Type="image/png", Accept="text/csv")
    assert (answer.status, answer.body) == (200, payload)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-model"] == "echo; version=1"
    assert re.fullmatch(
        r"queue;dur=1\.000, predict;dur=2\.000, total;dur=\d+\.\d{3}",
        answer.headers["server-timing"],
    )
    (asked,) = worker.asked
    assert asked.headers["accept"] == b"text/csv"
    assert asked.headers["x-request-id"].decode() == answer.headers["x-request-id"]
    assert server.status()["model"]["name"] == "echo; version=1"


def test_a_chunked_upload_arrives_whole(start: Start, work: Work) -> None:
    work()
    answer = start().predict(iter([b"one,", b"two,", b"x" * 100_000]), Content_Type="text/csv")
    assert (answer.status, answer.body) == (200, b"one,two," + b"x" * 100_000)


def test_a_problem_of_the_worker_is_the_callers(start: Start, work: Work) -> None:
    work(lambda asked: [reply(asked, status=b"unsupported-content-type")])
    answer = start().predict(b"as it was made by the worker")
    assert (answer.status, answer.body) == (415, b"as it was made by the worker")


def test_64_callers_of_3_processes_each_get_their_own_answer(start: Start, work: Work) -> None:
    worker = work()
    server = start(SCORER_FACADE_PROCESSES="3")
    until(lambda: server.log.read_text().count("replies are read from") >= 3)

    def caller(name: int) -> list[tuple[bytes, Answer]]:
        payloads = [f"{name}/{turn}".encode() for turn in range(10)]
        return [(payload, server.predict(payload)) for payload in payloads]

    with ThreadPoolExecutor(64) as callers:
        turns = [turn for turns in callers.map(caller, range(64)) for turn in turns]
    assert len(turns) == 640
    assert [(payload, answer) for payload, answer in turns if answer[::2] != (200, payload)] == []
    processes = {asked.headers["correlation-id"].partition(b".")[0] for asked in worker.asked}
    assert len(processes) > 1


def test_expect_100_continue_is_answered_before_the_body_is_sent(start: Start, work: Work) -> None:
    work()
    server = start()
    head = (
        "POST /api/predict HTTP/1.1\r\nHost: x\r\n"
        "Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall((head % 4).encode())
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"body")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall((head % 1_000_000).encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.usefixtures("real_kafka")
def test_an_answer_is_found_by_any_process_and_after_a_restart(
    start: Start, work: Work, names: dict[str, str]
) -> None:
    server = start(SCORER_FACADE_PROCESSES="2")
    until(lambda: server.log.read_text().count("replies are read from") >= 2)
    sent = [server.predict(b"%d" % number, Prefer="respond-async") for number in range(20)]
    assert {answer.status for answer in sent} == {202}
    places = [answer.headers["location"] for answer in sent]
    not_yet = server.ask("GET", places[0])
    assert (not_yet.status, not_yet.headers["retry-after"]) == (202, "1")
    work()
    for number, place in enumerate(places):
        assert found(server, place).body == b"%d" % number
    server.stop()
    another = start()
    for number, place in enumerate(places):
        assert found(another, place).body == b"%d" % number


def found(server: Server, place: str) -> Answer:
    """Ask for an answer where each 202 says to, until it is there."""
    while (answer := server.ask("GET", place)).status == 202:
        place = answer.headers["location"]
        time.sleep(0.02)
    return answer


@pytest.mark.usefixtures("real_kafka")
def test_answers_that_kafka_no_longer_keeps_are_gone(
    kafka: str, start: Start, work: Work, names: dict[str, str]
) -> None:
    work()
    server = start(SCORER_FACADE_ASYNC_TIMEOUT="3", SCORER_FACADE_TIMEOUT="3")
    place = server.predict(b"x", Prefer="respond-async").headers["location"]
    assert found(server, place).status == 200
    partition = int(re.findall(r"partition=(\d+)", place)[0])
    delete = [TopicPartition(names["SCORER_TOPICS_REPLIES"], partition, OFFSET_END)]
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    for future in admin.delete_records(delete).values():
        future.result(PATIENCE)
    assert (found(server, place).status, found(server, place).problem) == (410, "gone")


@contextmanager
def transactions(kafka: str) -> Iterator[Producer]:
    producer = Producer(
        {"bootstrap.servers": kafka, "transactional.id": os.urandom(8).hex(), "log_level": 0}
    )
    producer.init_transactions(PATIENCE)
    yield producer


def answer_in(producer: Producer, sent: Sent, *, commit: bool) -> None:
    producer.begin_transaction()
    producer.produce(sent.topic, sent.body, partition=sent.partition, headers=sent.headers)
    producer.flush(PATIENCE)
    if commit:
        producer.commit_transaction(PATIENCE)
    else:
        producer.abort_transaction(PATIENCE)


@pytest.mark.usefixtures("real_kafka")
def test_an_answer_whose_transaction_was_aborted_is_none(
    kafka: str, start: Start, work: Work
) -> None:
    worker = work(lambda _asked: [])
    server = start()
    place = server.predict(b"x", Prefer="respond-async").headers["location"]
    until(lambda: worker.asked)
    with transactions(kafka) as producer:
        answer_in(producer, reply(worker.asked[0], status=b"model-error"), commit=False)
        assert server.ask("GET", place).status == 202
        answer_in(producer, reply(worker.asked[0]), commit=True)
    assert (found(server, place).status, found(server, place).body) == (200, b"x")


@pytest.mark.usefixtures("real_kafka")
def test_markers_of_transactions_that_are_deleted_are_no_lost_replies(
    kafka: str, start: Start, work: Work, names: dict[str, str]
) -> None:
    worker = work(lambda _asked: [])
    server = start()
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(server.predict, b"x")
        until(lambda: worker.asked)
        first = reply(worker.asked[0])
        with transactions(kafka) as producer:
            answer_in(producer, first, commit=True)
        assert waiting.result().status == 200
        # The end is behind the marker, which only an end of the partition tells of.
        place = TopicPartition(names["SCORER_TOPICS_REPLIES"], first.partition, OFFSET_END)
        until(lambda: server.status()["kafka"]["replies"]["next_offset"] == 2)
        admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
        for future in admin.delete_records([place]).values():
            assert future.result(PATIENCE).low_watermark == 2
        waiting = other.submit(server.predict, b"y")
        until(lambda: len(worker.asked) == 2)
        time.sleep(6)  # until the facade has looked where the replies are
        worker.send([reply(worker.asked[1])])
        assert waiting.result().body == b"y"
    assert server.status()["kafka"]["counts"]["lost"] == 0


# ---- refused or unanswered --------------------------------------------------------------------


def test_what_the_facade_refuses_never_reaches_kafka(start: Start, work: Work) -> None:
    worker = work()
    server = start(SCORER_LIMITS_PAYLOAD_BYTES="1000")
    large = b"x" * 2_000_000
    assert server.predict(b"x" * 1001).problem == "payload-too-large"
    assert server.predict(large).problem == "payload-too-large"
    assert server.predict(iter([large, large])).problem == "payload-too-large"
    refused = server.predict(b"x", Content_Encoding="gzip")
    assert (refused.status, refused.problem) == (415, "unsupported-content-encoding")
    assert server.ask("GET", "/no/such/path").problem == "not-found"
    wrong = server.ask("GET", "/api/predict")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST, OPTIONS")
    assert server.predict(b"x" * 1000).status == 200
    assert [asked.payload for asked in worker.asked] == [b"x" * 1000]


def test_no_answer_in_time_is_a_504_that_says_unknown(start: Start, work: Work) -> None:
    worker = work(silent)
    server = start(SCORER_FACADE_TIMEOUT="2")
    answer = server.predict(b"")
    assert (answer.status, answer.problem) == (504, "timeout")
    assert b"unknown" in answer.body
    until(lambda: worker.asked)
    worker.send([reply(worker.asked[0])])
    until(lambda: server.status()["kafka"]["counts"]["late"] == 1)
    assert server.status()["kafka"]["pending"] == 0
    assert found(server, answer.headers["location"]).status == 200


def test_more_than_may_wait_are_told_to_come_back(start: Start, work: Work) -> None:
    worker = work(silent)
    server = start(SCORER_FACADE_MAX_PENDING="1")
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(server.predict, b"first")
        until(lambda: worker.asked)
        answer = server.predict(b"second")
        assert (answer.problem, answer.headers["retry-after"]) == ("overloaded", "1")
        worker.send([reply(worker.asked[0])])
        assert waiting.result().body == b"first"


@pytest.mark.usefixtures("real_kafka")
def test_a_request_that_kafka_does_not_store_is_a_503_with_the_reason(
    kafka: str, names: dict[str, str], start: Start, work: Work
) -> None:
    work()
    server = start()
    # A compacted topic takes no record without a key; the facade refuses to start on one.
    alter(kafka, names["SCORER_TOPICS_REQUESTS"], "cleanup.policy", "compact")
    until(lambda: server.predict(b"x").status != 200)
    answer = server.predict(b"x")
    assert (answer.status, answer.problem) == (503, "delivery-failed")
    assert b"INVALID_RECORD" in answer.body
    assert answer.headers["retry-after"] == "1"


@pytest.mark.usefixtures("real_kafka")
def test_a_request_too_large_for_its_topic_is_a_413(
    kafka: str, names: dict[str, str], start: Start
) -> None:
    alter(kafka, names["SCORER_TOPICS_REQUESTS"], "max.message.bytes", "1000")
    server = start(SCORER_FACADE_TIMEOUT="1")
    # It is the broker's a moment after it was altered: until then the request waits for a worker.
    while (answer := server.predict(os.urandom(5000))).status == 504:
        pass
    assert (answer.status, answer.problem) == (413, "payload-too-large")


def alter(bootstrap: str, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(PATIENCE)


# ---- topics and brokers that come and go ------------------------------------------------------


@pytest.mark.usefixtures("real_kafka")
def test_missing_topics_are_created_or_waited_for(
    kafka: str, names: dict[str, str], start: Start, work: Work
) -> None:
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    for future in admin.delete_topics(list(names.values())).values():
        future.result(PATIENCE)
    until(lambda: not names.values() & admin.list_topics(timeout=PATIENCE).topics.keys())
    waiting = start(ready=False)
    missing = names["SCORER_TOPICS_REPLIES"]
    until(lambda: missing in (waiting.status()["kafka"]["trouble"] or ""))
    assert waiting.ask("GET", "/readyz").problem == "not-ready"
    assert waiting.predict(b"").problem == "not-ready"
    start(SCORER_TOPICS_CREATE="true")
    until(waiting.is_ready)
    work()
    assert waiting.predict(b"at last").body == b"at last"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_facade_that_waits_for_its_broker_does_not_grow(start: Start) -> None:
    """Each attempt has clients of its own, which end with it."""
    (port,) = free_ports(1)
    server = start(ready=False, SCORER_KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{port}")
    until(lambda: server.status()["kafka"]["trouble"])
    process = server.status()["system"]["pid"]

    def threads() -> int:
        return sum(1 for _ in Path(f"/proc/{process}/task").iterdir())

    def looks(count: int) -> Iterator[int]:
        for _ in range(count):
            yield threads()
            time.sleep(0.05)

    # An attempt takes two and a half seconds, and has more threads in its midst than at its end.
    before = min(looks(60))
    time.sleep(6)
    until(lambda: threads() <= before)


@pytest.mark.usefixtures("real_kafka")
def test_replies_that_are_gone_fail_who_waits_for_them_and_nobody_later(
    kafka: str, names: dict[str, str], start: Start, work: Work
) -> None:
    worker = work(lambda asked: [reply(asked)] if asked.payload != b"wait" else [])
    server = start(SCORER_TOPICS_CREATE="true", SCORER_FACADE_TIMEOUT="25")
    assert server.predict(b"first").status == 200
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(server.predict, b"wait")
        until(lambda: len(worker.asked) == 2)
        admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
        for future in admin.delete_topics([names["SCORER_TOPICS_REPLIES"]]).values():
            future.result(PATIENCE)
        answer = waiting.result()
    assert (answer.status, answer.problem) == (503, "reply-lost")
    until(server.is_ready)
    assert server.predict(b"second").body == b"second"


def test_it_starts_without_a_broker_and_waits_for_one(
    kafka_server: KafkaServer, names: dict[str, str], start: Start
) -> None:
    kafka_server.stop()
    server = start(ready=False)
    until(lambda: server.status()["kafka"]["trouble"])
    assert server.ask("GET", "/readyz").problem == "not-ready"
    assert server.predict(b"").headers["retry-after"] == "1"
    kafka_server.start()
    until(server.is_ready)
    with EchoWorker(kafka_server.bootstrap, names["SCORER_TOPICS_REQUESTS"]):
        assert server.predict(b"there").body == b"there"


# ---- the end ----------------------------------------------------------------------------------


def test_sigterm_lets_requests_finish(start: Start, work: Work) -> None:
    worker = work(silent)
    server = start()
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(server.predict, b"in flight")
        until(lambda: worker.asked)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "Worker shutting down" in server.log.read_text())
        worker.send([reply(worker.asked[0])])
        answer = waiting.result()
    assert (answer.status, answer.body) == (200, b"in flight")
    assert server.process.wait(STOP_WITHIN) == 0
    assert "ERROR" not in server.log.read_text()


def test_sigint_ends_it_at_once(start: Start, work: Work) -> None:
    worker = work(silent)
    server = start()
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(server.predict, b"in flight")
        until(lambda: worker.asked)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(STOP_WITHIN) == 0
        with pytest.raises((http.client.HTTPException, OSError)):
            waiting.result()


def test_it_leaves_no_control_socket_and_a_plain_log(
    start: Start, work: Work, tmp_path: Path
) -> None:
    work()
    server = start(
        HOME=str(tmp_path), XDG_RUNTIME_DIR=str(tmp_path), SCORER_LOGGING_FORMAT="|%(message)s|"
    )
    assert server.predict(b"secret payload").status == 200
    server.stop()
    assert [found.name for found in tmp_path.rglob("*")] == ["facade.log"]
    assert {line[:1] for line in server.log.read_text().splitlines()} == {"|"}
