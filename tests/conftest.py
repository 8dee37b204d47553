"""The broker that the tests run on, and topics and groups of a test's own.

There is no fixture that looks for exceptions in librdkafka's callbacks: the client lets them out
of the call that polled.
"""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from tests.kafka_server import Broker, KafkaServer, KafkaUnavailable, MakeTopics
from tests.kafka_source import Source, choose_source, embedded

MOCK_PARTITIONS = 4
_ADMIN_TIMEOUT = 30.0
_LONGEST_ID = 200
# An example may take long on a busy machine, and not when it is tried again.
hypothesis.settings.register_profile("stream-scorer", deadline=None)
hypothesis.settings.load_profile("stream-scorer")

_source = pytest.StashKey[Source]()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Keep the names of tests short where a value is a long payload."""
    if isinstance(val, str | bytes) and len(val) > _LONGEST_ID:
        return f"{argname}-of-{len(val)}"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder, before tests are selected by their marks."""
    here = Path(__file__).parent
    for item in items:
        item.add_marker(item.path.relative_to(here).parts[0])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Choose the broker before the first test, whose timeout then counts no download."""
    of_broker = {"broker", "kafka", "kafka_server", "module_topics", "topics"}
    if not session.config.option.collectonly and any(
        of_broker.intersection(getattr(item, "fixturenames", ()))
        for item in session.items
        if item.get_closest_marker("unit") is None
    ):
        source_of(session.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None]:
    """Say which broker the tests ran on, below the list of what was skipped."""
    yield
    source = config.stash.get(_source, None)
    if source is None and config.getoption("numprocesses", None):
        source = choose_source()  # as each process of the tests has done
    if source is not None:
        colour = {"green" if source.real else "yellow": True}
        terminalreporter.line("")
        terminalreporter.line(f"broker: {source.description}", **colour)


def source_of(config: pytest.Config) -> Source:
    """Where the broker of this session comes from."""
    if _source not in config.stash:
        config.stash[_source] = choose_source()
    return config.stash[_source]


@pytest.fixture(autouse=True, scope="module")
def no_client_is_left_behind() -> Iterator[None]:
    """Who refers to its Kafka client is in a cycle with it, by the callbacks."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Iterator[str]:
    """The address of the session's broker: a real Kafka wherever one can be had."""
    with source_of(pytestconfig).run() as bootstrap:
        yield bootstrap


@pytest.fixture(scope="session")
def real_kafka(pytestconfig: pytest.Config, kafka: str) -> str:
    """The address of a real Kafka; the test is skipped where there is none."""
    if not source_of(pytestconfig).real:
        pytest.skip("needs a real Kafka")
    return kafka


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[str]:
    """The address of a mock cluster: the broker of ``stream-scorer dev``."""
    with embedded() as bootstrap:
        yield bootstrap


@pytest.fixture
def kafka_server() -> Iterator[KafkaServer]:
    """A running Kafka of the test's own, to kill and to pause; skipped where none can be run."""
    try:
        server = KafkaServer()
    except KafkaUnavailable as lack:
        pytest.skip(f"needs a Kafka of its own: {lack}")
    with server:
        yield server


@pytest.fixture(params=["embedded", "kafka"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each kind of broker in turn; the second run is skipped where no real Kafka can be had."""
    real = request.param == "kafka"
    bootstrap: str = request.getfixturevalue("real_kafka" if real else "embedded_broker")
    return Broker(bootstrap, real)


@pytest.fixture
def topics(request: pytest.FixtureRequest) -> Iterator[MakeTopics]:
    """Makes topics on the broker that the test runs on, and deletes them after it.

    ``topics(4, "requests", "results")`` returns two names that nobody else has, in this order.
    """
    with topics_on(_broker_of(request)) as make:
        yield make


@pytest.fixture(scope="module")
def module_topics(pytestconfig: pytest.Config, kafka: str) -> Iterator[MakeTopics]:
    """As ``topics``, on the session's broker, for what all tests of a module share."""
    with topics_on(Broker(kafka, source_of(pytestconfig).real)) as make:
        yield make


@contextmanager
def topics_on(broker: Broker) -> Iterator[MakeTopics]:
    """Makes topics on this broker, and deletes them at the end."""
    # A variable, since the futures fail when their client is gone.
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    made: list[str] = []

    def make(partitions: int, *names: str) -> tuple[str, ...]:
        prefix = f"test-{uuid.uuid4()}"
        new = tuple(f"{prefix}-{name}" for name in names)
        if broker.real:
            created = admin.create_topics([NewTopic(name, partitions) for name in new])
            made.extend(new)
            for name, future in created.items():
                future.result(_ADMIN_TIMEOUT)
                wait_for_leaders(admin, name, partitions)
        elif partitions == MOCK_PARTITIONS:
            for name in new:  # there once they have been asked for
                admin.list_topics(name, timeout=_ADMIN_TIMEOUT)
        else:
            raise ValueError(f"topics of the mock cluster have {MOCK_PARTITIONS} partitions")
        return new

    yield make
    for future in (admin.delete_topics(made) if made else {}).values():
        try:
            future.result(_ADMIN_TIMEOUT)
        except KafkaException as error:
            # A test may have deleted its topic itself.
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise


def wait_for_leaders(admin: AdminClient, topic: str, partitions: int) -> None:
    """Wait until a new topic can be used: brokers hear of it a moment after it is created."""
    deadline = time.monotonic() + _ADMIN_TIMEOUT
    while time.monotonic() < deadline:
        found = admin.list_topics(topic, timeout=_ADMIN_TIMEOUT).topics[topic].partitions
        if sum(partition.leader >= 0 for partition in found.values()) == partitions:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{topic} has no leaders")


def _broker_of(request: pytest.FixtureRequest) -> Broker:
    """The broker that a test asks for by its other fixtures, or else the session's."""
    if "broker" in request.fixturenames:
        chosen: Broker = request.getfixturevalue("broker")
        return chosen
    if "kafka_server" in request.fixturenames:
        return Broker(request.getfixturevalue("kafka_server").bootstrap, real=True)
    if "embedded_broker" in request.fixturenames:
        return Broker(request.getfixturevalue("embedded_broker"), real=False)
    return Broker(request.getfixturevalue("kafka"), source_of(request.config).real)


@pytest.fixture
def unique_group() -> str:
    """The name of a consumer group that nobody else is in."""
    return f"test-{uuid.uuid4()}"
