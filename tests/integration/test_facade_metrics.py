"""The facade's metrics and log, with three gunicorn processes on the session's Kafka."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.echo_worker import Asked, Sent, reply
from tests.facade_server import Server, Start, Work, until
from tests.unit.test_facade_metrics import value

PROCESSES = 3


def booted(server: Server) -> list[int]:
    """The gunicorn workers that were ever started, by process id."""
    return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", log_of(server))]


def log_of(server: Server) -> str:
    return server.log.read_text()


def is_read(server: Server, times: int) -> bool:
    return log_of(server).count("replies are read from") >= times


@contextmanager
def answered_by(pid: int, others: Sequence[int]) -> Iterator[None]:
    """While the others stand still, new connections are this process's."""
    try:
        for other in others:
            os.kill(other, signal.SIGSTOP)
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def shown(server: Server, name: str, **labels: str) -> float | None:
    return value(server.ask("GET", "/metrics").body, name, **labels)


def outcome(server: Server, name: str) -> float | None:
    return shown(server, "replies_total", outcome=name)


def predicted(server: Server, status: int = 200) -> float | None:
    labels = {"path": "/api/predict", "method": "POST", "status": str(status)}
    return shown(server, "requests_total", **labels)


def answer(asked: Asked) -> list[Sent]:
    usual = reply(asked)
    if asked.payload == b"silent":
        return []
    if asked.payload == b"twice":
        return [usual, usual]
    if asked.payload == b"guess":
        instance = asked.headers["correlation-id"].partition(b".")[0]
        return [reply(asked, correlation_id=instance + b"." + b"0" * 32), usual]
    return [usual]


def test_whichever_process_answers_tells_of_all(start: Start, work: Work) -> None:
    worker = work(answer)
    server = start(
        SCORER_FACADE_PROCESSES=str(PROCESSES),
        SCORER_FACADE_TIMEOUT="4",
        SCORER_LOGGING_JSON="true",
    )
    until(lambda: is_read(server, PROCESSES))
    pids = booted(server)
    assert len(pids) == PROCESSES
    until(lambda: shown(server, "ready") == PROCESSES)

    def others(pid: int) -> list[int]:
        return [other for other in pids if other != pid]

    for pid in pids:
        with answered_by(pid, others(pid)):
            assert {server.predict(b"x" * 100).status for _ in range(20)} == {200}
            status = server.status()
            assert (status["system"]["pid"], status["kafka"]["counts"]["requests"]) == (pid, 20)
    for pid in pids:
        with answered_by(pid, others(pid)):
            assert server.status()["system"]["pid"] == pid
            assert shown(server, "sent_total") == outcome(server, "answered") == 60
            assert predicted(server) == 60
            assert shown(server, "request_seconds_count", path="/api/predict") == 60

    # What becomes of replies that nobody waits for.
    assert server.predict(b"twice").status == 200
    until(lambda: outcome(server, "duplicate") == 1)
    assert server.predict(b"guess").status == 200
    assert outcome(server, "orphan") == 1
    assert server.predict(b"silent").status == 504
    assert shown(server, "timeouts_total") == 1
    until(lambda: predicted(server, 504) == 1)  # counted once the response is sent
    worker.send([reply(worker.asked[-1])])
    until(lambda: outcome(server, "late") == 1)

    # One dies with a caller, and is replaced. The gauge is of a second ago.
    until(lambda: shown(server, "pending") == 0)
    asked_before = len(worker.asked)
    victim = pids.pop()
    with ThreadPoolExecutor(1) as caller:
        with answered_by(victim, pids):
            waiting = caller.submit(server.predict, b"silent")
            until(lambda: shown(server, "pending") == 1)
            until(lambda: len(worker.asked) == asked_before + 1)
            os.kill(victim, signal.SIGKILL)
        assert waiting.exception() is not None
    until(lambda: len(booted(server)) == PROCESSES + 1)
    pids = [*pids, booted(server)[-1]]
    until(lambda: shown(server, "ready") == PROCESSES)
    assert shown(server, "pending") == 0
    assert shown(server, "sent_total") == 64
    with answered_by(pids[-1], pids[:-1]):
        assert {server.predict(b"x").status for _ in range(10)} == {200}
        assert server.status()["kafka"]["counts"]["requests"] == 10
    for pid in pids:
        with answered_by(pid, others(pid)):
            assert (shown(server, "sent_total"), outcome(server, "answered")) == (74, 72)
            assert predicted(server) == 72

    server.stop()
    lines: list[dict[str, Any]] = [json.loads(line) for line in log_of(server).splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    assert {"gunicorn.error", "http_facade.access", "http_facade.replies"} <= {
        line["logger"] for line in lines
    }
    told = [line for line in lines if line.get("path") == "/api/predict"]
    assert [line["status"] for line in told].count(200) == 72
    assert [(line["bytes_in"], line["bytes_out"]) for line in told[:60]] == [(100, 100)] * 60
    assert {line["remote_addr"] for line in told} == {"127.0.0.1"}
    asked = {request.headers["x-request-id"].decode() for request in worker.asked}
    assert {line["request_id"] for line in told} < asked
    assert not [line for line in lines if line.get("path") in {"/metrics", "/readyz", "/livez"}]


def test_the_log_of_one_process_is_text(start: Start, work: Work, tmp_path: Path) -> None:
    work()
    server = start(SCORER_LOGGING_LEVEL="DEBUG", SCORER_LOGGING_FORMAT="%(levelname)s %(message)s")
    server.predict(b"x", X_Request_Id="mine")
    assert shown(server, "sent_total") == predicted(server) == 1
    server.ask("GET", "/a%0aCRITICAL%20forged?secret")
    server.stop()
    lines = log_of(server).splitlines()
    assert any(
        re.fullmatch(
            r"INFO POST /api/predict 200 in=1 out=1 ms=\d+\.\d{3} id=mine from=127\.0\.0\.1", line
        )
        for line in lines
    )
    assert any(line.startswith("INFO GET /a%0ACRITICAL%20forged 404 ") for line in lines)
    assert any(line.startswith("DEBUG GET /metrics 200 ") for line in lines)
    assert not any("secret" in line or line.startswith("CRITICAL") for line in lines)
