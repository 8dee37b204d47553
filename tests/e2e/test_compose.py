"""What a user does first: docker compose up, curl, a producer of their own; then losing a worker.

Everything is built from this checkout and runs in a project of the session's own, beside whatever
else is up. Needs Docker with the compose plugin, and on the first run the time to download the
libraries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.e2e.conftest import Figures
from tests.e2e.services import (
    ROOT,
    WAIT,
    WINE,
    Answers,
    Compose,
    Requests,
    accepts,
    headers_of,
    own_addresses,
    running,
    settled,
    told,
)

pytestmark = pytest.mark.timeout(1800)

QUALITIES = [5.370157819225251, 5.535714285714286, 5.760869565217392]
CURL_WINE = (
    'curl -X POST -H "Content-Type:application/json" -H "Accept:application/json" '
    f"--data-binary @{WINE} http://localhost:5005/api/predict"
)
CURL_MNIST = (
    'curl -X POST -H "Content-Type:application/json" -H "Accept:application/octet-stream" '
    "--data-binary @samples/keras_mnist/data/mnist_0_10.png http://localhost:5005/api/predict"
)


@pytest.fixture(scope="module")
def compose(figures: Figures) -> Iterator[Compose]:
    """Kafka, a worker and the facade."""
    with running() as services:
        figures["compose: seconds until all are healthy, at the first start"] = (
            f"{services.seconds['up']:.1f}"
        )
        yield services


@pytest.fixture
def answers(compose: Compose) -> Iterator[Answers]:
    """What comes to score-results from now on."""
    reader = Answers(compose.bootstrap)
    yield reader
    reader.close()


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
    ports = [compose.http_port, compose.kafka_ports[0]]
    assert all(accepts("127.0.0.1", port) for port in ports)
    assert [(at, port) for at in own_addresses() for port in ports if accepts(at, port)] == []


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


def test_a_worker_killed_in_mid_stream_loses_nothing(
    compose: Compose, answers: Answers, figures: Figures
) -> None:
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
    counts = answers.counted(ids)
    figures["compose: a worker killed under load"] = told(counts)
    assert min(counts.values()) >= 1


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
    assert settled(shares, [1, 1, 2].__eq__) == [1, 1, 2]
    compose.up("--scale", "worker=1", "worker")
    assert settled(shares, [4].__eq__) == [4]


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


def test_keys_are_asked_for_once_they_are_set(compose: Compose) -> None:
    key = "0123456789abcdef"
    compose.up("facade", SCORER_FACADE_API_KEYS=json.dumps([key]))
    try:
        with pytest.raises(AssertionError, match="401"):
            compose.curl(CURL_WINE)
        answer = compose.curl(f'{CURL_WINE} -H "Authorization: Bearer {key}"')
    finally:
        compose.up("facade")
    assert json.loads(answer) == QUALITIES


def test_a_broker_of_the_cluster_without_its_file_says_what_is_missing(compose: Compose) -> None:
    with pytest.raises(AssertionError, match=r"--env-file deploy/cluster\.env up"):
        compose("run", "--rm", "--no-TTY", "--no-deps", "kafka-2")


def test_it_stops_by_itself_and_keeps_what_is_in_kafka(
    compose: Compose, answers: Answers, figures: Figures
) -> None:
    compose("stop", "worker")
    ids = Requests(compose.bootstrap).produce(10)
    compose("stop")
    # A program that does not hear SIGTERM is killed: 137. Java says 143 when it has heard.
    assert compose.exit_codes() == {"worker": 0, "facade": 0, "kafka": 143}
    compose("down")
    compose.up()
    assert answers.of(ids).keys() == ids
    compose("down")
    assert compose.seconds["down"] < 10
    figures["compose: seconds of docker compose down"] = f"{compose.seconds['down']:.1f}"
    compose.up()


def test_the_lines_are_those_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = {line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines()}
    assert {CURL_WINE, CURL_MNIST} <= lines
