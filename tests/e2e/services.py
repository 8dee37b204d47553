"""The services of docker-compose.yml in a project of the tests' own, and plain clients for them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from tests.kafka_server import free_ports

ROOT: Final = Path(__file__).parents[2]
WINE: Final = "samples/sklearn_wine/data/predict-wine-quality.json"

WAIT: Final = 120.0
"""Seconds, longer than a broker waits for a member that was killed: 45 s."""

QUIET: Final = 5.0
"""Seconds without an answer, after which no more are to come."""

HEALTHY_WITHIN: Final = 60
"""Seconds that a start may take once the images are built."""

T = TypeVar("T")


class Compose:
    """The project's services, with ports and a name of the test session's own."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self.project = f"scorer-e2e-{uuid.uuid4().hex[:8]}"
        ports = free_ports(5)
        names = ("FACADE_PORT", "KAFKA_PORT", "KAFKA_2_PORT", "KAFKA_3_PORT", "PROMETHEUS_PORT")
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"SAMPLE", "EXTRAS", "FACADE_ADDRESS"}
            and not name.startswith(("CLUSTER_", "COMPOSE_", "SCORER_"))
        } | {name: str(port) for name, port in zip(names, ports, strict=True)}
        self.http_port, *self.kafka_ports, self.prometheus_port = ports
        self.seconds: dict[str, float] = {}
        """How long the last of each command took."""
        self.bootstrap = f"127.0.0.1:{self.kafka_ports[0]}"

    def __call__(self, *arguments: str, **variables: str) -> str:
        """Run a compose command with these variables; return what it printed."""
        began = time.monotonic()
        done = subprocess.run(
            [
                *("docker", "compose", "--project-name", self.project),
                # Before those given: not the .env file of whoever runs the tests.
                *("--env-file", os.devnull),
                *self._options,
                *arguments,
            ],
            cwd=ROOT,
            env=self._environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        self.seconds[arguments[0]] = time.monotonic() - began
        if done.returncode != 0:
            raise AssertionError(
                f"docker compose {shlex.join(arguments)} ended with {done.returncode}:\n"
                f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
            )
        return done.stdout

    def up(self, *arguments: str, **variables: str) -> None:
        """Start what is built already, and wait until it is healthy."""
        try:
            self(
                *("up", "--detach", "--no-build", "--wait", f"--wait-timeout={HEALTHY_WITHIN}"),
                *arguments,
                **variables,
            )
        except AssertionError as error:
            logs = self("logs", "--no-color", "--tail=30")
            raise AssertionError(f"{error}\n{logs}") from None

    def exit_codes(self) -> dict[str, int]:
        """What each service's containers ended with, those that run left out."""
        lines = self("ps", "--all", "--format", "json").splitlines()
        containers = [json.loads(line) for line in lines]
        return {
            container["Service"]: container["ExitCode"]
            for container in containers
            if container["State"] == "exited"
        }

    def curl(self, line: str) -> str:
        """Run a curl line of the README against the published port; return the body."""
        if shutil.which("curl") is None:
            pytest.skip("needs curl")
        here = line.replace("localhost:5005", f"localhost:{self.http_port}")
        done = subprocess.run(
            [*shlex.split(here), "--silent", "--show-error", "--fail-with-body"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextmanager
def running(*options: str) -> Iterator[Compose]:
    """The services that these options choose, built from this checkout, healthy; then removed."""
    if shutil.which("docker") is None:
        pytest.skip("needs Docker")
    for lack, command in {
        "needs the compose plugin of Docker": ["docker", "compose", "version"],
        "needs a Docker daemon that answers": ["docker", "info"],
    }.items():
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip(lack)
    services = Compose(*options)
    try:
        services("build")
        services.up()
        yield services
    finally:
        services("down", "--volumes", "--remove-orphans")


def own_addresses() -> set[str]:
    """This machine's addresses but for loopback; other machines reach it at these."""
    told = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout
    return {address for address in told.split() if not address.startswith("127.")}


def accepts(address: str, port: int) -> bool:
    """Whether anybody listens there."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


class Answers:
    """A plain consumer that reads a topic from its end on, in no group."""

    def __init__(self, bootstrap: str, topic: str = "score-results") -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "unused",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                # A broker that is down for a while is part of the tests.
                "log_level": 0,
            }
        )
        partitions = self._consumer.list_topics(topic, timeout=WAIT).topics[topic].partitions
        # The end as it is now: "latest" would mean the end at the first fetch.
        self._consumer.assign(
            [
                TopicPartition(topic, partition, self._end(topic, partition))
                for partition in partitions
            ]
        )

    def _end(self, topic: str, partition: int) -> int:
        low_high = self._consumer.get_watermark_offsets(
            TopicPartition(topic, partition), timeout=WAIT
        )
        assert low_high is not None
        return low_high[1]

    def of(self, wanted: set[bytes]) -> dict[bytes, Message]:
        """The answers to these correlation ids, as far as they come within ``WAIT`` seconds."""
        found: dict[bytes, Message] = {}
        deadline = time.monotonic() + WAIT
        while found.keys() < wanted and time.monotonic() < deadline:
            message = self._consumer.poll(0.5)
            if message is None or message.error() is not None:
                continue
            correlation_id = headers_of(message)["correlation-id"]
            if correlation_id in wanted:
                found[correlation_id] = message
        return found

    def counted(self, wanted: set[bytes]) -> Counter[bytes]:
        """How often each of these is answered, once all are and no more answers come."""
        counts: Counter[bytes] = Counter()
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            messages = self._consumer.consume(1000, QUIET)
            for message in messages:
                if message.error() is None:
                    counts[headers_of(message)["correlation-id"]] += 1
            if not messages and counts.keys() >= wanted:
                break
        return Counter({each: counts[each] for each in wanted})

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()


def headers_of(message: Message) -> dict[str, bytes]:
    """A record's headers, each of which our answers carry once."""
    headers = message.headers() or []
    assert isinstance(headers, list)
    return {name: value for name, value in headers if isinstance(value, bytes)}


def told(counts: Counter[bytes]) -> str:
    """What became of requests, given how often each was answered, for the figures."""
    lost = sum(count == 0 for count in counts.values())
    again = counts.total() - len(counts) + lost
    return f"{len(counts)} requests, {lost} lost, {again} answered again"


class Requests:
    """A plain producer of the wine request to score-requests."""

    def __init__(self, bootstrap: str) -> None:
        # Idempotent, so that a request whose acknowledgement is lost is there once all the same.
        self._producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
        self._payload = (ROOT / WINE).read_bytes()
        self._failed: list[object] = []

    def produce(self, count: int) -> set[bytes]:
        """Send so many requests; return their correlation ids once all are acknowledged."""
        ids = {uuid.uuid4().bytes for _ in range(count)}
        for correlation_id in ids:
            self._producer.produce(
                "score-requests",
                self._payload,
                headers=[
                    ("content-type", b"application/json"),
                    ("correlation-id", correlation_id),
                ],
                on_delivery=self._delivered,
            )
        assert self._producer.flush(WAIT) == 0
        assert self._failed == []
        return ids

    def _delivered(self, error: object, _: Message) -> None:
        if error is not None:
            self._failed.append(error)


def settled(look: Callable[[], T], wanted: Callable[[T], bool], wait: float = WAIT) -> T:
    """What ``look`` sees once it is ``wanted``, or at last when it does not become that."""
    deadline = time.monotonic() + wait
    while not wanted(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return seen
