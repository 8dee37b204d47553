"""The ways to have a broker for the tests, and which of them this machine offers."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

from tests.kafka_server import (
    KAFKA_VERSION,
    SETTINGS,
    KafkaServer,
    KafkaUnavailable,
    answers,
    free_ports,
    jars,
    java,
)
from tests.mock_cluster import mock_cluster

_IMAGE: Final = f"apache/kafka:{KAFKA_VERSION}"
_ANSWER_TIMEOUT: Final = 60.0
_PULL_TIMEOUT: Final = 600.0


@dataclass(frozen=True, slots=True)
class Source:
    """One way to have a broker.

    ``run`` starts it where it must be started, gives its address, and ends it. ``real`` is false
    for the mock cluster.
    """

    description: str
    real: bool
    run: Callable[[], AbstractContextManager[str]]


def choose_source() -> Source:
    """The first that this machine offers of: the caller's own, Maven's, Docker's, the embedded.

    What has to be fetched has been fetched when this returns. A Kafka that is there and does not
    start is an error of ``run``, and not a reason to take the next.
    """
    address = os.environ.get("KAFKA_BOOTSTRAP")
    if address:
        return Source(f"the Kafka of KAFKA_BOOTSTRAP={address}", True, lambda: given(address))
    lacks = []
    for description, check, run in (
        (f"Apache Kafka {KAFKA_VERSION} from Maven's jars", check_maven, from_maven),
        (f"Apache Kafka {KAFKA_VERSION} in Docker", check_docker, from_docker),
    ):
        try:
            check()
        except KafkaUnavailable as lack:
            lacks.append(str(lack))
        else:
            return Source(description, True, run)
    return Source(
        f"librdkafka's embedded mock cluster, for want of a real Kafka ({'; '.join(lacks)}). "
        "The tests that need a real one were SKIPPED",
        False,
        embedded,
    )


@contextmanager
def given(address: str) -> Iterator[str]:
    """The broker of whoever runs the tests, which must be there."""
    if not answers(address, timeout=_ANSWER_TIMEOUT):
        raise RuntimeError(f"no broker answers at KAFKA_BOOTSTRAP={address}")
    yield address


def check_maven() -> None:
    java()
    jars()


@contextmanager
def from_maven() -> Iterator[str]:
    with KafkaServer() as server:
        yield server.bootstrap


def check_docker() -> None:
    _docker("info")
    try:
        _docker("image", "inspect", _IMAGE)
    except KafkaUnavailable:
        _docker("pull", "--quiet", _IMAGE, timeout=_PULL_TIMEOUT)


@contextmanager
def from_docker() -> Iterator[str]:
    (port,) = free_ports(1)
    bootstrap = f"127.0.0.1:{port}"
    settings = {
        **SETTINGS,
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{bootstrap}",
        "controller.quorum.voters": "1@localhost:9093",
    }
    environment = [
        f"--env=KAFKA_{name.upper().replace('.', '_')}={value}" for name, value in settings.items()
    ]
    publish = f"--publish={bootstrap}:9092"
    container = _docker("run", "--detach", publish, *environment, _IMAGE).strip()
    try:
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        while not answers(bootstrap):
            if time.monotonic() > deadline:
                log = _docker("logs", "--tail=40", container)
                raise RuntimeError(f"Kafka in Docker does not answer; the end of its log:\n{log}")
        yield bootstrap
    finally:
        _docker("rm", "--force", "--volumes", container)


def _docker(*arguments: str, timeout: float = 30.0) -> str:
    """Run a docker command; return what it said.

    Raises:
        KafkaUnavailable: there is no Docker, or it does not do so within ``timeout`` seconds.
    """
    try:
        done = subprocess.run(
            ["docker", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=True,
        )
    except FileNotFoundError as error:
        raise KafkaUnavailable("no Docker") from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise KafkaUnavailable(f"docker {arguments[0]} failed") from error
    return done.stdout


@contextmanager
def embedded() -> Iterator[str]:
    """The kind of broker that ``stream-scorer dev`` has: librdkafka's mock cluster."""
    with mock_cluster() as cluster:
        yield cluster.bootstrap
