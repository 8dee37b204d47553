"""What the fault tests share: runs on topics of their own, and a line for each verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.run import Run
from tests.faults.verifier import Verdict
from tests.kafka_server import KafkaServer, MakeTopics

KINDS = ("requests", "results", "replies", "dead_letters")
PARTITIONS = 6

_lines = pytest.StashKey[list[str]]()

MakeRun = Callable[..., Run]
Report = Callable[[Verdict], None]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what every run came to."""
    if lines := config.stash.get(_lines, []):
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Print a verdict's line with the test's name."""
    lines = request.config.stash.setdefault(_lines, [])

    def add(verdict: Verdict) -> None:
        lines.append(f"{request.node.name}: {verdict.line}")

    return add


@pytest.fixture
def make_run(
    request: pytest.FixtureRequest, topics: MakeTopics, unique_group: str, tmp_path: Path
) -> MakeRun:
    """Makes a run on the test's own broker where it has one, else on the session's."""
    if "kafka_server" in request.fixturenames:
        server: KafkaServer = request.getfixturevalue("kafka_server")
        bootstrap = server.bootstrap
    else:
        bootstrap = request.getfixturevalue("real_kafka")

    def make(delivery: str, *, partitions: int = PARTITIONS, **options: Any) -> Run:
        names = dict(zip(KINDS, topics(partitions, *KINDS), strict=True))
        return Run(
            bootstrap, names, unique_group, tmp_path, delivery, partitions=partitions, **options
        )

    return make
