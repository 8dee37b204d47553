"""The facade as it runs: gunicorn in a process of its own, on the session's Kafka."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.kafka_server import KafkaServer, MakeTopics
from tests.unit.test_facade_echo import Asked, EchoWorker, Sent, once, reply

PATIENCE = 30.0
STOP_WITHIN = 20.0


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The last part of the problem's type."""
        assert self.headers["content-type"] == "application/problem+json"
        found = json.loads(self.body)
        assert found["status"] == self.status
        return str(found["type"]).rpartition(":")[2]


class Server:
    """A running facade."""

    def __init__(self, log: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.log = log
        self.process = process
        self.port = port

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(
                method,
                path,
                body,
                headers or {},
                encode_chunked=not (body is None or isinstance(body, bytes)),
            )
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def predict(self, body: bytes | Iterable[bytes], **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", "/api/predict", body, named)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("GET", "/api/status").body)
        return found

    def is_ready(self) -> bool:
        return self.ask("GET", "/readyz").status == 200

    def stop(self) -> None:
        """Stop it as a service manager would, and fail where it does not obey."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server does not stop:\n{self.log.read_text()}")
        assert code == 0, self.log.read_text()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        time.sleep(0.02)


@contextmanager
def running(log: Path, environ: dict[str, str]) -> Iterator[Server]:
    inherited = {name: value for name, value in os.environ.items() if "SCORER" not in name}
    settings = {
        "SCORER_HOST": "127.0.0.1",
        "SCORER_PORT": "0",
        "SCORER_TOPICS_CREATE": "false",
        "SCORER_KAFKA_CONSUMER_FETCH_WAIT_MAX_MS": "5",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "-c",
                "python:http_facade.gunicorn_conf",
                "http_facade.app:get_app()",
            ],
            env={**inherited, **settings, "PYTHONPATH": str(Path.cwd()), **environ},
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: "Listening at" in log.read_text() or process.poll() is not None)
        listening = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log.read_text())
        assert listening is not None, log.read_text()
        server = Server(log, process, int(listening[1]))
        until(lambda: answers(server))
        yield server
        if process.poll() is None:
            server.stop()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        sys.stdout.write(log.read_text())


def answers(server: Server) -> bool:
    try:
        return server.ask("GET", "/livez").status == 200
    except OSError:
        return False


@pytest.fixture
def names(topics: MakeTopics) -> dict[str, str]:
    requests, results, replies, dead = topics(4, "requests", "results", "replies", "dlq")
    return {
        "SCORER_TOPICS_REQUESTS": requests,
        "SCORER_TOPICS_RESULTS": results,
        "SCORER_TOPICS_REPLIES": replies,
        "SCORER_TOPICS_DEAD_LETTERS": dead,
    }


class Start(Protocol):
    """Starts a facade, ready unless told otherwise, that stops after the test."""

    def __call__(self, *, ready: bool = True, **environ: str) -> Server: ...


@pytest.fixture
def start(request: pytest.FixtureRequest, names: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    own = "kafka_server" in request.fixturenames
    bootstrap = (
        request.getfixturevalue("kafka_server").bootstrap
        if own
        else request.getfixturevalue("kafka")
    )
    with ExitStack() as servers:

        def begin(*, ready: bool = True, **environ: str) -> Server:
            log = tmp_path / "facade.log"
            settings = {"SCORER_KAFKA_BOOTSTRAP_SERVERS": bootstrap, **names, **environ}
            server = servers.enter_context(running(log, settings))
            if ready:
                until(server.is_ready)
            return server

        yield begin


Work = Callable[..., EchoWorker]


@pytest.fixture
def work(kafka: str, names: dict[str, str]) -> Iterator[Work]:
    """Starts workers that stop after the test."""
    with ExitStack() as workers:

        def begin(answer: Callable[[Asked], Iterable[Sent]] = once) -> EchoWorker:
            return workers.enter_context(EchoWorker(kafka, names["SCORER_TOPICS_REQUESTS"], answer))

        yield begin


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
    until(lambda: server.log.read_text().count("replies are read from") == 3)

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
    server = start(SCORER_FACADE_TIMEOUT="0.5")
    answer = server.predict(b"")
    assert (answer.status, answer.problem) == (504, "timeout")
    assert b"unknown" in answer.body
    until(lambda: worker.asked)
    worker.send([reply(worker.asked[0])])
    until(lambda: server.status()["kafka"]["counts"]["late"] == 1)
    assert server.status()["kafka"]["pending"] == 0


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
    answer = start().predict(os.urandom(5000))
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
    until(lambda: waiting.status()["kafka"]["trouble"])
    assert names["SCORER_TOPICS_REPLIES"] in waiting.status()["kafka"]["trouble"]
    assert waiting.ask("GET", "/readyz").problem == "not-ready"
    assert waiting.predict(b"").problem == "not-ready"
    start(SCORER_TOPICS_CREATE="true")
    until(waiting.is_ready)
    work()
    assert waiting.predict(b"at last").body == b"at last"


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


def test_it_outlives_its_broker(
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
    kafka_server.kill()
    until(lambda: not server.is_ready())
    kafka_server.start()
    until(server.is_ready)
    with EchoWorker(kafka_server.bootstrap, names["SCORER_TOPICS_REQUESTS"]):
        assert server.predict(b"there again").body == b"there again"


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
