"""Three facades, three workers and many callers: each gets its own answer."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.engine import environment_for, facade_process, numbers_conf, worker_process
from tests.kafka_server import MakeTopics, free_ports
from tests.numbers_plugin import expected

KINDS = ("requests", "results", "replies", "dead_letters")
CALLERS = 64
CALLS = 40


def test_each_of_64_callers_gets_its_own_answers(
    real_kafka: str, topics: MakeTopics, unique_group: str, tmp_path: Path
) -> None:
    names = dict(zip(KINDS, topics(4, *KINDS), strict=True))
    # One partition of replies for three facades: each has to skip what is for the others.
    (names["replies"],) = topics(1, "shared-replies")
    environment = environment_for(real_kafka, names, worker={"group": unique_group})
    conf = str(numbers_conf(tmp_path))
    ports = free_ports(3)
    with ExitStack() as stack:
        for n in range(3):
            stack.enter_context(worker_process(tmp_path, f"worker-{n}", environment, conf))
        for n, port in enumerate(ports):
            stack.enter_context(facade_process(tmp_path, f"facade-{n}", environment, port))
        with ThreadPoolExecutor(CALLERS) as callers:
            results = callers.map(lambda n: call(ports[n % 3], n), range(CALLERS))
            wrong = [text for result in results for text in result]
    assert wrong == []


def call(port: int, caller: int) -> list[str]:
    """Make this caller's calls; return what was wrong."""
    wrong = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for turn in range(CALLS):
        number = caller * CALLS + turn
        bad = number % 10 == 0
        payload = b"no number" if bad else str(number).encode()
        connection.request("POST", "/api/predict", payload, {"Content-Type": "text/plain"})
        response = connection.getresponse()
        body = response.read()
        right = (
            (response.status == 400) if bad else (response.status, body) == (200, expected(number))
        )
        if not right:
            wrong.append(f"{number}: {response.status} {body!r}")
    connection.close()
    return wrong
