"""The facade while what it stands on fails: the broker, the workers, the replies, itself."""

from __future__ import annotations

import http.client
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests import raw_headers
from tests.echo_worker import Asked, EchoWorker, Sent, once, reply
from tests.facade_server import PATIENCE, TOPICS, Server, running, until
from tests.faults.callers import Call, call_each, load
from tests.faults.late_end import LateEnd
from tests.kafka_server import KafkaServer, KafkaUnavailable, MakeTopics

BACK_WITHIN = 10.0
"""Seconds in which the facade has to be ready again once what it lacked is back."""

Work = Callable[..., EchoWorker]


def is_ready(server: Server) -> bool:
    """Whether it is ready; not while there is nobody to ask."""
    try:
        return server.is_ready()
    except (OSError, http.client.HTTPException):
        return False


def answered(calls: list[Call]) -> int:
    return sum(call.status == 200 for call in calls)


def ready_after(server: Server) -> float:
    """Wait until it is ready, and return the seconds that took."""
    began = time.monotonic()
    until(lambda: is_ready(server))
    return time.monotonic() - began


# ---- the broker -------------------------------------------------------------------------------

TIMEOUT = 2.0
ENOUGH = 200
SLACK = 3.0
"""Seconds a call may take over its timeout, on a machine that starts a broker beside it."""


class SlowOffsets(LateEnd):
    """A proxy before the broker that lets nobody know quickly where a partition ends."""

    LIST_OFFSETS: Final = 2

    def request(self, connection: object, frame: bytes) -> bool:
        if int.from_bytes(frame[4:6], "big") == self.LIST_OFFSETS:
            time.sleep(0.2)
        return super().request(connection, frame)


@pytest.fixture(scope="module")
def slow() -> Iterator[SlowOffsets]:
    with SlowOffsets() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def kafka_server(slow: SlowOffsets) -> Iterator[KafkaServer]:
    """A Kafka of this module's own, that each test leaves running."""
    try:
        server = KafkaServer(slow.port)
    except KafkaUnavailable as lack:
        pytest.skip(f"needs a Kafka of its own: {lack}")
    with server:
        slow.upstream = server.upstream
        yield server


@pytest.fixture(scope="module")
def facade(kafka_server: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A facade that outlives all that happens to the broker, with a worker behind it."""
    settings = {
        "SCORER_KAFKA_BOOTSTRAP_SERVERS": kafka_server.bootstrap,
        "SCORER_TOPICS_CREATE": "true",
        "SCORER_FACADE_TIMEOUT": str(TIMEOUT),
    }
    with running(tmp_path_factory.mktemp("facade") / "log", settings) as server:
        until(server.is_ready)
        with EchoWorker(kafka_server.bootstrap, "score-requests"):
            yield server


@pytest.mark.chaos
@pytest.mark.parametrize("fault", ["stop", "kill", "pause"])
def test_the_broker_goes_and_comes_back(
    fault: str, kafka_server: KafkaServer, facade: Server
) -> None:
    go, come_back = {
        "stop": (kafka_server.stop, kafka_server.start),
        "kill": (kafka_server.kill, kafka_server.start),
        "pause": (kafka_server.pause, kafka_server.resume),
    }[fault]
    process = facade.status()["system"]["pid"]
    with load(facade, callers=16) as made:
        until(lambda: answered(made) > ENOUGH)
        go()
        until(lambda: not facade.is_ready())
        until(lambda: any(call.ending == "not-ready" for call in made))
        come_back()
        seconds = ready_after(facade)
        back = time.monotonic()
        before = answered(made)
        until(lambda: answered(made) > before + ENOUGH)
    slowest = max(call.seconds for call in made)
    endings = Counter(call.ending for call in made)
    afterwards = Counter(call.ending for call in made if call.began > back)
    sys.stdout.write(
        f"{fault}: {dict(endings)}, the slowest in {slowest:.1f} s; "
        f"ready again in {seconds:.1f} s, then {dict(afterwards)}\n"
    )
    assert [call for call in made if call.wrong] == []
    assert endings.keys() <= {"answered", "not-ready", "delivery-failed", "timeout"}
    assert slowest < TIMEOUT + SLACK
    assert seconds < BACK_WITHIN
    status = facade.status()
    assert status["system"]["pid"] == process
    assert (status["kafka"]["trouble"], status["kafka"]["counts"]["lost"]) == (None, 0)


def test_a_request_at_the_first_ready_is_answered_however_late_offsets_are(
    slow: SlowOffsets, kafka_server: KafkaServer, facade: Server, tmp_path: Path
) -> None:
    """Whoever is ready before it knows where replies begin misses the first of them."""
    assert facade.is_ready()  # it has made the topics, and its worker answers
    environ = {"SCORER_KAFKA_BOOTSTRAP_SERVERS": slow.bootstrap}
    with running(tmp_path / "log", environ) as server:
        assert first_answer(server, b"first") == (200, b"first")


# ---- workers and their replies ----------------------------------------------------------------


@pytest.fixture
def names(topics: MakeTopics) -> dict[str, str]:
    # With one partition a process sees the replies to those that were there before it.
    return dict(zip(TOPICS, topics(1, "requests", "results", "replies", "dlq"), strict=True))


@pytest.fixture
def environ(real_kafka: str, names: dict[str, str]) -> dict[str, str]:
    return {"SCORER_KAFKA_BOOTSTRAP_SERVERS": real_kafka, **names}


@pytest.fixture
def work(real_kafka: str, names: dict[str, str]) -> Work:
    def make(answer: Callable[[Asked], list[Sent]] = once) -> EchoWorker:
        return EchoWorker(real_kafka, names["SCORER_TOPICS_REQUESTS"], answer)

    return make


def test_without_a_worker_each_caller_hears_at_the_timeout_that_nothing_is_known(
    environ: dict[str, str], work: Work, tmp_path: Path
) -> None:
    with running(tmp_path / "log", environ | {"SCORER_FACADE_TIMEOUT": "2"}) as server:
        until(server.is_ready)
        with ThreadPoolExecutor(10) as callers:
            answers = list(callers.map(server.predict, [b"%d" % turn for turn in range(10)]))
        assert {(answer.status, answer.problem) for answer in answers} == {(504, "timeout")}
        assert all(b"is unknown" in answer.body for answer in answers)
        assert server.is_ready()
        kafka = server.status()["kafka"]
        assert (kafka["counts"]["timeouts"], kafka["counts"]["replies"]) == (10, 0)
        assert kafka["pending"] == 0
        with work():
            # It finds the ten first, and answers those that nobody waits for any more.
            until(lambda: server.status()["kafka"]["counts"]["late"] == 10)
            assert server.predict(b"now").body == b"now"


def test_strange_replies_reach_nobody_and_are_counted(
    real_kafka: str, environ: dict[str, str], work: Work, tmp_path: Path
) -> None:
    """Each request is answered truly after a dozen replies that are none."""
    topic = environ["SCORER_TOPICS_REPLIES"]

    def strange(asked: Asked) -> list[Sent]:
        name, _, number = asked.headers["correlation-id"].partition(b".")
        truth = reply(asked)
        place = (truth.topic, truth.partition)
        own = [
            name + b"." + b"0" * 32,
            name + b"." + number[:-1],
            name + b"." + number + b"0",
            name + b"." + number.upper() + b"\n",
            name + b".",
        ]
        others = [
            b"0" * 16 + b"." + number,
            number,
            name,
            name.upper() + b"." + number,
            b"\xff",
            b"",
        ]
        return [
            *(Sent(*place, [("correlation-id", each), ("status", b"ok")], b"x") for each in own),
            *(Sent(*place, [("correlation-id", each), ("status", b"ok")], b"x") for each in others),
            Sent(*place, [], b"no headers"),
            Sent(*place, [("correlation-id", None)], b"a null one"),
            # The last one wins: it names nobody.
            Sent(*place, [*truth.headers, ("correlation-id", b"-")], b"two ids"),
            Sent(*place, [(f"x-{number}", b"y" * 100) for number in range(1000)], b"many headers"),
            truth,
        ]

    orphans, strangers = 5, 6 + 4
    with running(tmp_path / "log", environ) as server, work(strange):
        until(server.is_ready)
        raw_headers.produce(real_kafka, topic, b"not UTF-8", [(b"\xff\xfe", b"x")])
        calls = list(call_each(server, (b"%d" % turn for turn in range(50))))
        assert [call for call in calls if call.body != call.payload or call.status != 200] == []
        counts = server.status()["kafka"]["counts"]
        found = {name: counts[name] for name in ("replies", "orphan", "foreign", "unreadable")}
        assert found == {
            "replies": 50,
            "orphan": 50 * orphans,
            "foreign": 50 * strangers,
            "unreadable": 1,
        }
        assert server.status()["kafka"]["pending"] == 0
        assert "ERROR" not in server.log.read_text()


def test_a_reply_that_is_garbage_harms_no_more_than_its_request(
    environ: dict[str, str], work: Work, tmp_path: Path
) -> None:
    garbage = b'\xff\x00\r\nSet-Cookie: a=b\r\n\r\n<b>"\x7f'

    def spoilt(asked: Asked) -> list[Sent]:
        header = asked.payload.decode()
        return [reply(asked, **{header: garbage} if header else {})]

    with running(tmp_path / "log", environ) as server, work(spoilt):
        until(server.is_ready)
        unknown = server.predict(b"status")
        assert (unknown.status, unknown.problem) == (500, "unknown-status")
        for header in ("content-type", "model", "server-timing"):
            answer = server.predict(header.encode())
            assert (answer.status, answer.body) == (200, header.encode())
            assert "set-cookie" not in answer.headers
        answer = server.predict(b"")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")


# ---- the facade itself ------------------------------------------------------------------------

IN_FLIGHT = 200


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_process_is_killed_with_200_calls_in_flight(
    kills: int, environ: dict[str, str], work: Work, tmp_path: Path
) -> None:
    dice = random.Random(17)

    def slowly(asked: Asked) -> list[Sent]:
        # Many a reply comes when the process that has asked for it is gone and replaced.
        return [replace(reply(asked), delay=dice.uniform(0.1, 4.0))]

    with (
        running(tmp_path / "log", environ) as server,
        work(slowly),
        load(server, IN_FLIGHT) as made,
    ):
        for _ in range(kills):
            kill_under_load(server, made)
    assert [call for call in made if call.wrong] == []
    # A new process that is not connected yet says so.
    assert {call.ending for call in made} <= {"answered", "reset", "not-ready"}


def kill_process(server: Server) -> None:
    """Kill the one process that serves, and wait until it is no more."""
    process = server.status()["system"]["pid"]
    os.kill(process, signal.SIGKILL)
    with suppress(ProcessLookupError):
        until(lambda: os.kill(process, 0))  # none is sent: it raises once the process is gone


def kill_under_load(server: Server, made: list[Call]) -> None:
    """Kill the process that serves, and see its successor serve."""
    until(lambda: is_ready(server))
    until(lambda: server.status()["kafka"]["pending"] >= IN_FLIGHT * 0.95)
    process = server.status()["system"]["pid"]
    before = len(made)
    kill_process(server)
    seconds = ready_after(server)
    enough = answered(made) + IN_FLIGHT
    until(lambda: answered(made) > enough)
    ended = Counter(call.ending for call in made[before:])
    after = server.status()
    counts = after["kafka"]["counts"]
    sys.stdout.write(f"ready again in {seconds:.1f} s, {dict(ended)}, {counts}\n")
    assert after["system"]["pid"] != process
    assert seconds < BACK_WITHIN
    assert ended["reset"] >= IN_FLIGHT * 0.9
    assert counts["foreign"] > 0
    assert counts["orphan"] == 0


@pytest.mark.chaos
def test_the_master_is_killed(environ: dict[str, str], work: Work, tmp_path: Path) -> None:
    """Its process answers what it has in hand, ends by itself, and leaves the port to the next."""
    with running(tmp_path / "first", environ) as first, work(lambda _: []) as worker:
        until(first.is_ready)
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(first.predict, b"in hand")
            until(lambda: worker.asked)
            first.process.kill()
            first.process.wait()
            until(lambda: "shutting down" in first.log.read_text())
            worker.send([reply(worker.asked[0])])
            assert waiting.result().body == b"in hand"
        port = {"SCORER_PORT": str(first.port)}
        with running(tmp_path / "second", environ | port) as second:
            assert ready_after(second) < BACK_WITHIN


@pytest.mark.timeout(900)
@pytest.mark.parametrize("restarts", [10, pytest.param(100, marks=pytest.mark.long)])
def test_a_request_at_the_first_ready_is_answered(
    restarts: int, environ: dict[str, str], work: Work, tmp_path: Path
) -> None:
    """Two facades side by side, each restarted so often."""

    def at_the_first_ready(number: int) -> list[tuple[int, bytes]]:
        ends = []
        with running(tmp_path / f"log-{number}", environ) as server:
            for turn in range(restarts):
                if turn:
                    kill_process(server)
                ends.append(first_answer(server, b"%d/%d" % (number, turn)))
        return ends

    with work() as worker, ThreadPoolExecutor(2) as both:
        ends = [end for ends in both.map(at_the_first_ready, range(2)) for end in ends]
    expected = [(200, b"%d/%d" % (number, turn)) for number in range(2) for turn in range(restarts)]
    assert ends == expected
    names = {asked.headers["correlation-id"].partition(b".")[0] for asked in worker.asked}
    assert len(names) == 2 * restarts


def first_answer(server: Server, payload: bytes) -> tuple[int, bytes]:
    """The answer to a request on the connection that says "ready" first, at once after it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        try:
            while time.monotonic() < deadline:
                connection.request("GET", "/readyz")
                with connection.getresponse() as response:
                    response.read()
                if response.status == 200:
                    connection.request("POST", "/api/predict", payload)
                    with connection.getresponse() as response:
                        return response.status, response.read()
                time.sleep(0.001)
        except (ConnectionError, http.client.HTTPException):
            pass  # the process that was killed
        finally:
            connection.close()
    pytest.fail("never ready")
