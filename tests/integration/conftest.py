"""A facade and echo workers on topics of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.echo_worker import Asked, EchoWorker, Sent, once
from tests.facade_server import TOPICS, Server, Start, Work, running, until
from tests.kafka_server import MakeTopics


@pytest.fixture
def names(topics: MakeTopics) -> dict[str, str]:
    return dict(zip(TOPICS, topics(4, "requests", "results", "replies", "dlq"), strict=True))


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


@pytest.fixture
def work(kafka: str, names: dict[str, str]) -> Iterator[Work]:
    """Starts workers that stop after the test."""
    with ExitStack() as workers:

        def begin(answer: Callable[[Asked], Iterable[Sent]] = once) -> EchoWorker:
            return workers.enter_context(EchoWorker(kafka, names["SCORER_TOPICS_REQUESTS"], answer))

        yield begin
