"""The profile `cluster`: three brokers, exactly once, and brokers that die under load."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from tests.e2e.conftest import Figures
from tests.e2e.services import WAIT, Answers, Compose, Requests, running, settled, told

pytestmark = pytest.mark.timeout(1800)

TOPICS = ("score-requests", "score-results", "score-replies", "score-requests.dlq")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Compose]:
    """Three brokers, two workers and the facade."""
    with running("--env-file", "deploy/cluster.env") as services:
        services.bootstrap = ",".join(f"127.0.0.1:{port}" for port in services.kafka_ports)
        services.up("--scale", "worker=2", "worker")
        yield services


def test_every_record_is_kept_three_times_and_taken_once_two_have_it(cluster: Compose) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    ours = (*TOPICS, "__consumer_offsets", "__transaction_state")
    topics = admin.list_topics(timeout=WAIT).topics
    copies = {
        name: {len(each.replicas) for each in topics[name].partitions.values()} for name in ours
    }
    assert copies == {name: {3} for name in ours}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in ours]
    described = admin.describe_configs(resources, request_timeout=WAIT)
    assert {future.result()["min.insync.replicas"].value for future in described.values()} == {"2"}


def test_each_broker_killed_in_turn_under_load_loses_and_repeats_nothing(
    cluster: Compose, figures: Figures
) -> None:
    answers = Answers(cluster.bootstrap)
    seen = Answers(cluster.bootstrap)
    requests = Requests(cluster.bootstrap)
    ids: list[bytes] = []
    done = threading.Event()

    def load() -> None:
        while not done.wait(0.05):
            ids.extend(requests.produce(50))

    loading = threading.Thread(target=load)
    loading.start()
    try:
        for broker in ("kafka", "kafka-2", "kafka-3"):
            cluster("kill", broker)
            before = len(ids)
            # Taken by the two that are left, and answered.
            assert settled(ids.__len__, (before + 1000).__le__) >= before + 1000
            meanwhile = set(ids[before:])
            assert seen.of(meanwhile).keys() == meanwhile
            cluster.up("--scale", "worker=2")
    finally:
        done.set()
        loading.join()
    counts = answers.counted(set(ids))
    answers.close()
    seen.close()
    figures["cluster: each of three brokers killed under load, exactly once"] = told(counts)
    assert set(counts.values()) == {1}
