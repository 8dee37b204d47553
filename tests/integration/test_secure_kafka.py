"""Kafka with TLS, passwords or certificates, and the ACLs of ``docs/security.md`` and no others."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from http_facade.client import RequestReplyClient
from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.kafka.topics import BrokerUnreachable, TopicError, Topics
from stream_scorer.worker import Worker
from tests.certificates import Authority
from tests.conftest import wait_for_leaders
from tests.engine import (
    MODEL,
    ROOT,
    Process,
    environment_for,
    facade_process,
    numbers_conf,
    process,
    scorer_of,
    settings_for,
    worker_process,
)
from tests.facade_server import Server
from tests.kafka_server import KafkaUnavailable, free_ports
from tests.numbers_plugin import Plugin
from tests.secure_kafka import SecureKafka
from tests.wire import RecordReader, RequestProducer, Send

TOPICS = ("score-requests", "score-results", "score-replies", "score-requests.dlq")
PASSWORD = "canary-5f0d1c"  # noqa: S105 - of a broker that lives as long as these tests
WRONG = "canary-77aa02"
KEY_PASSWORD = "canary-9be431"  # noqa: S105
TIMEOUT = 30.0
PATIENCE = 60.0
"""Seconds that a broker has to answer; a refusal, told within 10 as a rule, ends it before."""

Properties = dict[str, object]


class Right(NamedTuple):
    """A row of the table."""

    who: str
    resource: str
    name: str
    pattern: str
    operation: str

    def __str__(self) -> str:
        return f"{self.operation} on {self.resource.replace('_', ' ')} {self.name}"

    def to(self, user: str) -> AclBinding:
        return AclBinding(
            ResourceType[self.resource.upper()],
            self.name,
            ResourcePatternType[self.pattern.upper()],
            f"User:{user}",
            "*",
            AclOperation[self.operation],
            AclPermissionType.ALLOW,
        )


def _documented() -> list[Right]:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    row = r"^\| `(\w+)` \| (\w+) \| `([\w.-]+)` \| (\w+) \| (\w+) \|"
    return [Right(*found) for found in re.findall(row, text, re.MULTILINE)]


RIGHTS = _documented()


@pytest.fixture(scope="module")
def server() -> Iterator[SecureKafka]:
    """A broker with the users ``worker`` and ``facade``, and for each right one without it."""
    try:
        made = SecureKafka()
    except KafkaUnavailable as lack:
        pytest.skip(f"needs a Kafka of its own: {lack}")
    with made:
        admin = made.administrator
        for name, future in admin.create_topics([NewTopic(name, 1) for name in TOPICS]).items():
            future.result(TIMEOUT)
            wait_for_leaders(admin, name, 1)
        rights = [right.to(right.who) for right in RIGHTS]
        for number, missing in enumerate(RIGHTS):
            rights += [
                right.to(f"without-{number}")
                for right in RIGHTS
                if right.who == missing.who and right is not missing
            ]
        looking = [Right("onlooker", "topic", name, "literal", "DESCRIBE") for name in TOPICS]
        made.allow(rights + [right.to(right.who) for right in looking])
        users = ["worker", "facade", "onlooker", *(f"without-{n}" for n in range(len(RIGHTS)))]
        made.add_users(dict.fromkeys(users, PASSWORD))
        made.authority.sign("worker", password=KEY_PASSWORD)
        Authority(made.folder, "foreign")
        yield made


@pytest.fixture
def conf(tmp_path: Path) -> str:
    return str(numbers_conf(tmp_path))


def by_password(server: SecureKafka, user: str) -> Properties:
    return {
        "bootstrap.servers": server.scram,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": user,
        "sasl.password": PASSWORD,
        "ssl.ca.location": str(server.authority.certificate),
    }


def by_certificate(server: SecureKafka) -> Properties:
    return {
        "bootstrap.servers": server.mutual,
        "security.protocol": "SSL",
        "ssl.ca.location": str(server.authority.certificate),
        "ssl.certificate.location": str(server.folder / "worker.crt"),
        "ssl.key.location": str(server.folder / "worker.key"),
        "ssl.key.password": KEY_PASSWORD,
    }


def environment(properties: Properties, **worker: object) -> dict[str, str]:
    return environment_for("", {}, kafka=properties, worker=worker)


def send(properties: Properties, payload: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "stream_scorer", "send"),
            *(str(payload), "--content-type", "text/plain"),
        ],
        cwd=ROOT,
        env={**os.environ, **environment(properties)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def running(settings: Settings) -> Iterator[Future[None]]:
    """A worker in a thread, and how it ends."""
    topics = Topics(settings)
    topics.wait_for_broker(TIMEOUT)
    topics.ensure()
    worker = Worker(settings, topics, scorer_of(settings), MODEL, Plugin.content_types)
    with ThreadPoolExecutor(1, "worker") as threads:
        ending = threads.submit(worker.run)
        try:
            yield ending
        finally:
            worker.stop()


def has_secret(text: str) -> bool:
    return "canary" in text or "PRIVATE KEY" in text


def test_the_table_is_read() -> None:
    assert {right.who for right in RIGHTS} == {"worker", "facade"}
    assert len(RIGHTS) == 8


def test_what_the_table_lists_is_enough(server: SecureKafka, conf: str, tmp_path: Path) -> None:
    """At least once with a password, exactly once with a certificate; facade and send."""
    (port,) = free_ports(1)
    payload = tmp_path / "five.txt"
    payload.write_text("5")
    workers: Mapping[str, Properties] = {
        "at_least_once": by_password(server, "worker"),
        "exactly_once": by_certificate(server),
    }
    outputs = []
    of_facade = environment(by_password(server, "facade"))
    with facade_process(tmp_path, "facade", of_facade, port) as facade:
        http = Server(facade.log, facade.popen, port)
        for delivery, properties in workers.items():
            settings = environment(properties, delivery=delivery)
            with worker_process(tmp_path, delivery, settings, conf) as worker:
                assert http.predict(b"5", content_type="text/plain").body == b"16"
                if delivery == "at_least_once":
                    sent = send(by_password(server, "facade"), payload)
                    assert (sent.returncode, sent.stdout.strip()) == (0, "16"), sent.stderr
                    outputs.append(sent.stderr)
                assert worker.stop() == 0, worker.text
                outputs.append(worker.text)
        assert http.is_ready(), facade.text
        outputs += [facade.text, str(http.status())]
    for text in outputs:
        assert not has_secret(text)
        assert "authorization" not in text.lower()


@pytest.mark.parametrize("number", range(len(RIGHTS)), ids=[str(right) for right in RIGHTS])
def test_each_right_is_needed_and_its_lack_is_named(server: SecureKafka, number: int) -> None:
    right = RIGHTS[number]
    delivery = "exactly_once" if right.resource == "transactional_id" else "at_least_once"
    settings = settings_for(
        "",
        {},
        kafka=by_password(server, f"without-{number}"),
        worker={"delivery": delivery, "instance_id": "here"},
    )
    if right.who == "facade":

        async def trouble() -> str:
            client = RequestReplyClient(settings)
            client.start()
            try:
                deadline = time.monotonic() + TIMEOUT
                while True:
                    told = str(client.snapshot()["trouble"])
                    if str(right) in told or time.monotonic() > deadline:
                        break
                    await asyncio.sleep(0.05)
                assert not client.ready
                return told
            finally:
                await client.close()

        told = asyncio.run(trouble())
    else:
        with pytest.raises(OperationError) as raised, running(settings) as ending:
            ending.result(TIMEOUT)
        told = str(raised.value)
        assert raised.value.exit_code == 1
    # The name of a transactional id goes on with that of the member.
    assert told.startswith(f"Kafka's ACLs do not allow {right}")


def test_who_may_only_see_the_topics_is_told_what_else_is_needed(server: SecureKafka) -> None:
    topics = Topics(settings_for("", {}, kafka=by_password(server, "onlooker")))
    with pytest.raises(TopicError) as raised:
        topics.ensure()
    assert str(raised.value) == (
        "Kafka's ACLs do not allow READ on topic score-requests, WRITE on topic score-results, "
        "WRITE on topic score-replies, WRITE on topic score-requests.dlq"
    )
    with pytest.raises(TopicError, match=r"WRITE on topic score-requests, READ on topic score-rep"):
        topics.ensure_for_caller()


def test_to_create_topics_takes_a_right_of_its_own(server: SecureKafka) -> None:
    names = {"requests": "later-requests", "replies": "later-replies"}
    settings = settings_for(
        "", names, kafka=by_password(server, "facade"), topics={"create": True, "partitions": 1}
    )
    used = [
        Right("facade", "topic", "later-requests", "literal", "WRITE"),
        Right("facade", "topic", "later-replies", "literal", "READ"),
    ]
    created = [right._replace(operation="CREATE") for right in used]
    server.allow(right.to("facade") for right in used)
    with pytest.raises(TopicError) as raised:
        Topics(settings).ensure_for_caller()
    assert str(raised.value) == f"Kafka's ACLs do not allow {created[0]}, {created[1]}"
    server.allow(right.to("facade") for right in created)
    topics = Topics(settings)
    topics.ensure_for_caller()
    assert topics.partitions("later-replies") == 1


@pytest.mark.parametrize(
    ("delivery", "name"),
    [
        ("at_least_once", "score-requests"),
        ("at_least_once", "score-results"),
        ("exactly_once", "stream-scorer"),
        ("exactly_once", "score-results"),
        ("exactly_once", "stream-scorer-"),
    ],
)
def test_a_right_that_is_taken_back_ends_the_worker_and_loses_nothing(
    server: SecureKafka, delivery: str, name: str
) -> None:
    (right,) = [right for right in RIGHTS if right.who == "worker" and right.name == name]
    settings = settings_for(
        "", {}, kafka=by_password(server, "worker"), worker={"delivery": delivery}
    )
    producer = RequestProducer(server.bootstrap, "score-requests")
    with RecordReader(server.bootstrap, "score-results", isolation="read_committed") as reader:
        with running(settings) as ending:
            reader.answers(producer.send(Send(b"1")))
            server.take_back(right.to("worker"))
            try:
                ids = producer.send(Send(b"5"))
                error = ending.exception(TIMEOUT)
            finally:
                server.allow([right.to("worker")])
        assert isinstance(error, OperationError)
        assert str(error).startswith(f"Kafka's ACLs do not allow {right}")
        with running(settings):
            # At least once, the first request may be answered again.
            answered = [record for record in reader.answers(ids) if record.correlation_id in ids]
            assert [record.value for record in answered] == [b"16"]


class Case(NamedTuple):
    """A wrong way to connect, and what has to be told of it; ``{}`` stands for the address."""

    changed: Properties
    told: str
    listener: str = "scram"


CASES = {
    "wrong password": Case({"sasl.password": WRONG}, "{} refused the user name or password"),
    "unknown user": Case({"sasl.username": "nobody"}, "{} refused the user name or password"),
    "wrong mechanism": Case(
        {"sasl.mechanism": "SCRAM-SHA-256"},
        "{} does not take sasl.mechanism SCRAM-SHA-256: .* supported mechanisms: SCRAM-SHA-512$",
    ),
    "another authority": Case(
        {"ssl.ca.location": "foreign"},
        "certificate of Kafka at {} is not trusted: .*; set ssl.ca.location",
    ),
    "another host's certificate": Case(
        {}, "certificate of Kafka at {} is another host's: .*127.0.0.1", "elsewhere"
    ),
    "plaintext": Case({"security.protocol": "PLAINTEXT"}, "{} wants TLS: .* SSL or SASL_SSL$"),
    "a password without TLS": Case(
        {"security.protocol": "SASL_PLAINTEXT"}, "{} wants TLS: .* set it to SASL_SSL$"
    ),
    "no certificate": Case(
        {"security.protocol": "SSL"}, "{} refused our certificate, or the lack of one", "mutual"
    ),
}


@pytest.fixture(scope="module")
def refusals(server: SecureKafka) -> dict[str, tuple[str, float]]:
    """What each case is told, and after how many seconds; all of them at the same time."""

    def connect(case: Case) -> tuple[str, float]:
        properties = by_password(server, "worker") | case.changed
        properties["bootstrap.servers"] = getattr(server, case.listener)
        if case.changed.get("ssl.ca.location"):
            properties["ssl.ca.location"] = str(server.folder / "foreign.pem")
        topics = Topics(settings_for("", {}, kafka=properties))
        began = time.monotonic()
        with pytest.raises(BrokerUnreachable) as raised:
            topics.wait_for_broker(PATIENCE)
        return str(raised.value), time.monotonic() - began

    with ThreadPoolExecutor(len(CASES)) as threads:
        return dict(zip(CASES, threads.map(connect, CASES.values()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_told_in_words(
    name: str, server: SecureKafka, refusals: dict[str, tuple[str, float]]
) -> None:
    case = CASES[name]
    told, seconds = refusals[name]
    assert re.search(case.told.format(re.escape(getattr(server, case.listener))), told), told
    assert "\n" not in told
    assert not has_secret(told)
    assert seconds < PATIENCE / 2


def test_a_wrong_password_is_one_line_of_each_command(
    server: SecureKafka, conf: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    payload = tmp_path / "five.txt"
    payload.write_text("5")
    wrong = environment(by_password(server, "worker") | {"sasl.password": WRONG})
    serving = {**wrong, "SCORER_PORT": str(port), "SCORER_HOST": "127.0.0.1"}
    sending = ("send", str(payload), "--content-type", "text/plain")
    with ExitStack() as stack:

        def start(name: str, *arguments: str, environment: Mapping[str, str]) -> Process:
            log = tmp_path / f"{name}.log"
            return stack.enter_context(process(log, *arguments, environment=environment))

        worker = start("worker", "worker", "--conf", conf, environment=wrong)
        sender = start("send", *sending, environment=wrong)
        facade = start("facade", "facade", environment=serving)
        for ended in (worker, sender):
            assert ended.wait() == 1
            assert len(_troubles(ended.text)) == 1, ended.text
            assert _troubles(ended.text)[0].startswith("stream-scorer: Kafka at ")
        facade.wait_for("the warning", lambda: "refused the user name" in facade.text)
        refusals = [line for line in _troubles(facade.text) if "refused the user name" in line]
        assert len(refusals) == 1, facade.text
        http = Server(facade.log, facade.popen, port)
        assert not http.is_ready()
        status = http.status()
        assert "refused the user name or password" in status["kafka"]["trouble"]
        assert facade.stop() == 0
        for text in (worker.text, sender.text, facade.text, str(status)):
            assert not has_secret(text)


def _troubles(text: str) -> list[str]:
    """The lines that are more than information, and those that are nothing else."""
    return [line for line in text.splitlines() if " INFO " not in line]
