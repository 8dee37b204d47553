"""Many callers of several facades, and replies that are repeated, delayed, forged and foreign."""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.echo_worker import EchoWorker
from tests.facade_server import TOPICS, Server, running, until
from tests.faults.callers import all_calls
from tests.faults.mischief import COUNTED, RATE, Mischief
from tests.kafka_server import MakeTopics

CALLERS = 64
FACADES = 2
PROCESSES = 2
SEED = 20_260


@pytest.mark.parametrize(
    ("turns", "timeout"),
    [
        # A broker beside many other tests may stand still for a second.
        (15, 4.0),
        pytest.param(2000, 1.0, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
def test_every_answer_belongs_to_its_request(
    turns: int, timeout: float, real_kafka: str, topics: MakeTopics, tmp_path: Path
) -> None:
    names = dict(zip(TOPICS, topics(4, "requests", "results", "replies", "dlq"), strict=True))
    settings = {
        "SCORER_KAFKA_BOOTSTRAP_SERVERS": real_kafka,
        "SCORER_FACADE_PROCESSES": str(PROCESSES),
        "SCORER_FACADE_TIMEOUT": str(timeout),
        **names,
    }
    mischief = Mischief(SEED, timeout)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(tmp_path / f"facade-{number}.log", settings))
            for number in range(FACADES)
        ]
        worker = stack.enter_context(
            EchoWorker(real_kafka, names["SCORER_TOPICS_REQUESTS"], mischief)
        )
        logs = [server.log for server in servers]
        until(lambda: all(log.read_text().count("are read from") >= PROCESSES for log in logs))
        calls = all_calls(servers, CALLERS, turns)
        endings = Counter(call.ending for call in calls)
        until(lambda: len(worker.asked) == len(calls))
        expected = mischief.expected(calls)
        sys.stdout.write(f"{endings}\n{mischief.done}\n{expected}\n")
        assert [call for call in calls if call.wrong] == []
        # On a busy machine some take too long by themselves, and some that come too late find a
        # facade that has not got round to its timeouts; both are few.
        assert endings.keys() == {"answered", "timeout"}
        assert mischief.done["too_late"] / 2 <= endings["timeout"] <= len(calls) / 2
        assert len(expected) == FACADES * PROCESSES
        assert min(mischief.done.values()) > len(calls) * RATE / 2
        until(lambda: _counts(servers) == expected)


def _counts(servers: list[Server]) -> dict[str, dict[str, int]]:
    """What each process has counted, by its name."""
    found: dict[str, dict[str, int]] = {}
    # Which process answers is chance; many that are asked at once share the work.
    with ThreadPoolExecutor(16) as threads:
        while len(found) < FACADES * PROCESSES:
            for status in threads.map(Server.status, servers * 8):
                kafka = status["kafka"]
                found[kafka["instance"]] = {name: kafka["counts"][name] for name in COUNTED}
    return found
