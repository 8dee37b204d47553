"""What a user does first: docker compose up, curl, a producer of their own; then losing a worker.

Everything is built from this checkout and runs in a project of the session's own, beside whatever
else is up. Needs Docker with the compose plugin, and on the first run the time to download the
libraries.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.kafka_server import free_ports

pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).parents[2]
WINE = "samples/sklearn_wine/data/predict-wine-quality.json"
QUALITIES = [5.370157819225251, 5.535714285714286, 5.760869565217392]
CURL_WINE = (
    'curl -X POST -H "Content-Type:application/json" -H "Accept:application/json" '
    f"--data-binary @{WINE} http://localhost:5005/api/predict"
)
CURL_MNIST = (
    'curl -X POST -H "Content-Type:application/json" -H "Accept:application/octet-stream" '
    "--data-binary @samples/keras_mnist/data/mnist_0_10.png http://localhost:5005/api/predict"
)
# Longer than a broker waits for a member that was killed: 45 s.
WAIT = 120.0


class Compose:
    """The project's services, with ports and a name of the test session's own."""

    def __init__(self) -> None:
        self.project = f"scorer-e2e-{uuid.uuid4().hex[:8]}"
        self.http_port, self.kafka_port = free_ports(2)
        self.bootstrap = f"127.0.0.1:{self.kafka_port}"
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"SAMPLE", "EXTRAS", "FACADE_ADDRESS"}
            and not name.startswith(("COMPOSE_", "SCORER_"))
        } | {"FACADE_PORT": str(self.http_port), "KAFKA_PORT": str(self.kafka_port)}

    def __call__(self, *arguments: str, **variables: str) -> str:
        """Run a compose command with these variables; return what it printed."""
        done = subprocess.run(
            [
                *("docker", "compose", "--project-name", self.project),
                # Not the .env file of whoever runs the tests.
                *("--env-file", os.devnull),
                *arguments,
            ],
            cwd=ROOT,
            env=self._environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(
                f"docker compose {shlex.join(arguments)} ended with {done.returncode}:\n"
                f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
            )
        return done.stdout

    def up(self, *arguments: str, **variables: str) -> None:
        """Start what is built already, and wait until it is healthy."""
        try:
            self("up", "--detach", "--no-build", "--wait", *arguments, **variables)
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


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    """Kafka, a worker and the facade, built from this checkout, up and healthy; then removed."""
    if shutil.which("docker") is None:
        pytest.skip("needs Docker")
    for lack, command in {
        "needs the compose plugin of Docker": ["docker", "compose", "version"],
        "needs a Docker daemon that answers": ["docker", "info"],
    }.items():
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip(lack)
    services = Compose()
    try:
        services("build")
        services.up()
        yield services
    finally:
        services("down", "--volumes", "--remove-orphans")


@pytest.fixture
def answers(compose: Compose) -> Iterator[Answers]:
    """What comes to score-results from now on."""
    reader = Answers(compose.bootstrap)
    yield reader
    reader.close()


class Answers:
    """A plain consumer that reads a topic from its end on, in no group."""

    def __init__(self, bootstrap: str, topic: str = "score-results") -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "unused",
                "enable.auto.commit": False,
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

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()


def headers_of(message: Message) -> dict[str, bytes]:
    """A record's headers, each of which our answers carry once."""
    headers = message.headers() or []
    assert isinstance(headers, list)
    return {name: value for name, value in headers if isinstance(value, bytes)}


class Requests:
    """A plain producer of the wine request to score-requests."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
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


def test_the_curl_line_of_the_readme_answers_three_qualities(compose: Compose) -> None:
    assert json.loads(compose.curl(CURL_WINE)) == QUALITIES


def test_a_producer_on_this_machine_gets_its_answer(compose: Compose, answers: Answers) -> None:
    (correlation_id,) = ids = Requests(compose.bootstrap).produce(1)
    answer = answers.of(ids)[correlation_id]
    assert headers_of(answer)["status"] == b"ok"
    assert json.loads(answer.value() or b"") == QUALITIES


def test_nothing_is_offered_to_other_machines(compose: Compose) -> None:
    assert compose("port", "kafka", "29092").strip() == compose.bootstrap
    assert compose("port", "facade", "5005").strip() == f"127.0.0.1:{compose.http_port}"


@pytest.mark.parametrize("service", ["worker", "facade"])
def test_the_program_is_not_root_and_writes_to_tmp_only(compose: Compose, service: str) -> None:
    look = (
        "id -u; touch /tmp/x && echo tmp; touch /app/x /opt/venv/x 2>/dev/null || echo else not; "
        "command -v gcc make || echo no tools"
    )
    said = compose("exec", "--no-TTY", service, "sh", "-c", look).splitlines()
    assert said == ["10001", "tmp", "else not", "no tools"]


def test_the_facade_has_no_model_library(compose: Compose) -> None:
    look = (
        "from importlib.util import find_spec; "
        "print([name for name in ('sklearn', 'onnxruntime', 'tensorflow') if find_spec(name)])"
    )
    said = {s: compose("exec", "--no-TTY", s, "python", "-c", look) for s in ("facade", "worker")}
    assert said == {
        "facade": "[]\n",
        "worker": "['sklearn', 'onnxruntime', 'tensorflow']\n",
    }


def test_a_worker_killed_in_mid_stream_loses_nothing(compose: Compose, answers: Answers) -> None:
    requests = Requests(compose.bootstrap)
    ids = requests.produce(200)
    with ThreadPoolExecutor(1) as beside:
        killing = beside.submit(compose, "kill", "worker")
        while not killing.done():
            ids |= requests.produce(200)
        killing.result()
    # These find no worker at all.
    ids |= requests.produce(200)
    compose.up("worker")
    found = answers.of(ids)
    assert len(ids - found.keys()) == 0
    assert {headers_of(answer)["status"] for answer in found.values()} == {b"ok"}


def test_three_workers_share_the_partitions(compose: Compose) -> None:
    admin = AdminClient({"bootstrap.servers": compose.bootstrap})

    def shares() -> list[int]:
        group = admin.describe_consumer_groups(["stream-scorer"], request_timeout=WAIT)
        try:
            members = group["stream-scorer"].result().members
        except KafkaException:
            return []
        return sorted(len(member.assignment.topic_partitions) for member in members)

    compose.up("--scale", "worker=3", "worker")
    assert settled(shares, [1, 1, 2]) == [1, 1, 2]
    compose.up("--scale", "worker=1", "worker")
    assert settled(shares, [4]) == [4]


def settled(look: Callable[[], list[int]], wanted: list[int]) -> list[int]:
    """What ``look`` sees once it is ``wanted``, or at last when it does not become that."""
    deadline = time.monotonic() + WAIT
    while (seen := look()) != wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    return seen


@pytest.mark.parametrize(
    ("sample", "line"), [("sklearn_wine/onnx", CURL_WINE), ("keras_mnist", CURL_MNIST)]
)
def test_another_sample_takes_one_variable(compose: Compose, sample: str, line: str) -> None:
    compose.up(SAMPLE=sample)
    try:
        answer = json.loads(compose.curl(line))
    finally:
        compose.up()
    if sample == "keras_mnist":
        (probabilities,) = answer
        assert len(probabilities) == 10
        assert max(probabilities) == probabilities[0]
    else:
        assert answer == pytest.approx(QUALITIES, abs=1e-6)


def test_it_stops_by_itself_and_keeps_what_is_in_kafka(compose: Compose, answers: Answers) -> None:
    compose("stop", "worker")
    ids = Requests(compose.bootstrap).produce(10)
    compose("stop")
    # A program that does not hear SIGTERM is killed: 137. Java says 143 when it has heard.
    assert compose.exit_codes() == {"worker": 0, "facade": 0, "kafka": 143}
    compose("down")
    compose.up()
    assert answers.of(ids).keys() == ids


def test_the_lines_are_those_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = {line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines()}
    assert {CURL_WINE, CURL_MNIST} <= lines
