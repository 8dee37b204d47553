"""Poison of every kind that does not kill the process, one pill to twenty good requests."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn
from zlib import crc32

import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests import raw_headers
from tests.engine import running_worker, settings_for
from tests.kafka_server import MakeTopics
from tests.numbers_plugin import Plugin, expected
from tests.wire import Record, RecordReader

PARTITIONS: Final = 2
EACH: Final = 3
GOOD_TO_ONE: Final = 20
PAYLOAD_BYTES: Final = 20_000
RESULT_BYTES: Final = 500_000
TOPIC_BYTES: Final = 100_000
SEED: Final = 20_260

Headers = list[tuple[str, bytes | None]]


class PoisonedPlugin(Plugin):
    """Numbers, and whatever ``STAGE:KIND`` asks for."""

    def decode(self, payload: bytes, content_type: str) -> str:
        text = payload.decode(errors="replace")
        stage, _, kind = text.partition(":")
        if stage == "decode":
            _fail(kind)
        if stage in {"predict", "encode", "value"}:
            return text
        return super().decode(payload, content_type)

    def predict(self, model: None, instances: Sequence[str]) -> Sequence[str]:
        for text in instances:
            stage, _, kind = text.partition(":")
            if stage == "predict":
                _fail(kind)
        return super().predict(model, instances)

    def encode(self, prediction: str, accept: str | None) -> tuple[bytes, str]:
        stage, _, kind = prediction.partition(":")
        if stage == "encode":
            _fail(kind)
        if stage == "value":
            return orjson.dumps([float(kind)]), "application/json"
        return super().encode(prediction, accept)


def _fail(kind: str) -> NoReturn:
    if kind == "recursion":
        _fail(kind)
    if kind == "memory":
        bytearray(1 << 60)
    if kind == "exit":
        raise SystemExit(3)
    raise RuntimeError("a bug, at /secret/path")


class Pill(NamedTuple):
    """A request that cannot be answered as it should; ``letter``: its answer goes to results."""

    payload: bytes | None
    status: str
    letter: bool
    headers: Headers
    content_type: bytes | None = b"text/plain"


def pill(payload: bytes | None, status: str, *headers: tuple[str, bytes | None]) -> Pill:
    return Pill(payload, status, status != "expired", [*headers])


def typed(content_type: bytes | None, status: str = "unsupported-content-type") -> Pill:
    return Pill(b"1", status, True, [], content_type)


PILLS: Final[dict[str, Pill]] = {
    "no content type": typed(None),
    "an empty content type": typed(b""),
    "a malformed content type": typed(b"text/;;=\x01"),
    "a huge content type": typed(b"text/" + b"x" * 10_000),
    "a content type that is not UTF-8": typed(b"\xff\xfe", "invalid-request"),
    "an unknown content type": typed(b"image/png"),
    "a range for a content type": typed(b"*/*"),
    "two content types, the last unknown": pill(
        b"1", "unsupported-content-type", ("content-type", b"image/png")
    ),
    "a null payload": pill(None, "invalid-payload"),
    "an empty payload": pill(b"", "invalid-payload"),
    "a payload over the limit": pill(b"1" * (PAYLOAD_BYTES + 1), "payload-too-large"),
    "a payload that is no number": pill(b"\xff\x00", "invalid-payload"),
    "a number too long for Python": pill(b"9" * 5_000, "model-error"),
    "a deadline that is no number": pill(b"1", "invalid-request", ("deadline", b"soon")),
    "a deadline beyond all numbers": pill(b"1", "invalid-request", ("deadline", b"9" * 40)),
    "a deadline that has passed": pill(b"1", "expired", ("deadline", b"1")),
    "a reply topic that is not allowed": pill(
        b"1", "invalid-request", ("reply-topic", b"somebody-elses")
    ),
    "a reply topic that no topic can be called": pill(
        b"1", "invalid-request", ("reply-topic", b"a/b\x00c")
    ),
    "a reply topic that is not UTF-8": pill(b"1", "invalid-request", ("reply-topic", b"\xff")),
    "a reply partition that is not there": pill(
        b"1", "invalid-request", ("reply-topic", b"{replies}"), ("reply-partition", b"99")
    ),
    "a reply partition that is no number": pill(
        b"1", "invalid-request", ("reply-topic", b"{replies}"), ("reply-partition", b"-1")
    ),
    "a reply partition alone": pill(b"1", "invalid-request", ("reply-partition", b"0")),
    "decode raises": pill(b"decode:bug", "invalid-payload"),
    "decode exits": pill(b"decode:exit", "invalid-payload"),
    "decode recurses": pill(b"decode:recursion", "invalid-payload"),
    "decode takes all memory": pill(b"decode:memory", "invalid-payload"),
    "predict raises": pill(b"predict:bug", "model-error"),
    "predict exits": pill(b"predict:exit", "model-error"),
    "predict recurses": pill(b"predict:recursion", "model-error"),
    "predict takes all memory": pill(b"predict:memory", "model-error"),
    "predict forgets one": pill(b"short", "model-error"),
    "encode raises": pill(b"encode:bug", "model-error"),
    "encode exits": pill(b"encode:exit", "model-error"),
    "encode recurses": pill(b"encode:recursion", "model-error"),
    "encode takes all memory": pill(b"encode:memory", "model-error"),
    "a result over the limit": pill(b"big:%d" % (RESULT_BYTES + 1), "model-error"),
}

# Strange, and to be scored all the same.
ODDITIES: Final[dict[str, tuple[bytes, Headers, bytes]]] = {
    "a NUL in a header": (b"5", [("x-nul", b"a\x00b")], expected(5)),
    "a thousand headers": (b"6", [(f"x-{n}", b"v") for n in range(1_000)], expected(6)),
    "a header of no value": (b"7", [("x-none", None), ("deadline", None)], expected(7)),
    "a correlation id twice": (b"8", [("content-type", b"text/plain; charset=utf-8")], expected(8)),
    "an infinite result": (b"value:inf", [], b"[null]"),
    "a result that is no number": (b"value:nan", [], b"[null]"),
    "a result near the largest number": (b"value:1e308", [], b"[1e+308]"),
}

# Refused by the broker, which takes less on the results topic than our own limits allow.
TOO_LARGE_FOR_THE_TOPIC: Final[dict[str, tuple[bytes, Headers]]] = {
    "a result over the topic's limit": (b"big:%d" % (2 * TOPIC_BYTES), []),
    "headers that come back, over it": (b"1", [("x-large", b"h" * 2 * TOPIC_BYTES)]),
}


class Sender:
    """Sends records as no well-behaved client would; each has its name and number as its key."""

    def __init__(self, bootstrap: str, names: dict[str, str]) -> None:
        self._bootstrap = bootstrap
        self._names = names
        self._producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})

    def send(
        self, key: str, payload: bytes | None, headers: Headers, content_type: bytes | None
    ) -> None:
        first: Headers = [("correlation-id", key.encode())]
        if content_type is not None:
            first.append(("content-type", content_type))
        replies = self._names["replies"].encode()
        rest: Headers = [
            (name, replies if value == b"{replies}" else value) for name, value in headers
        ]
        self._producer.produce(
            self._names["requests"],
            payload,
            key.encode(),
            crc32(key.encode()) % PARTITIONS,
            headers=[*first, *rest],
        )

    def done(self) -> None:
        assert self._producer.flush(30) == 0


@pytest.fixture
def names(real_kafka: str, topics: MakeTopics) -> dict[str, str]:
    kinds = ("requests", "results", "replies", "dead_letters")
    return dict(zip(kinds, topics(PARTITIONS, *kinds), strict=True))


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_pill_harms_only_itself(
    real_kafka: str,
    names: dict[str, str],
    unique_group: str,
    delivery: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _limit(real_kafka, names["results"], TOPIC_BYTES)
    sender = Sender(real_kafka, names)
    statuses: dict[str, str] = {}
    bodies: dict[str, bytes] = {}
    letters: list[str] = []
    for name, item in PILLS.items():
        for number in range(EACH):
            statuses[f"{name} {number}"] = item.status
            letters += [f"{name} {number}"] * item.letter
    for name, (_, _, body) in ODDITIES.items():
        statuses[name], bodies[name] = "ok", body
    for name in TOO_LARGE_FOR_THE_TOPIC:
        statuses[name] = "model-error"
        letters.append(name)
    bad = [*statuses]
    for number in range(len(bad) * GOOD_TO_ONE):
        statuses[str(number)], bodies[str(number)] = "ok", expected(number)
    order = [*statuses]
    random.Random(SEED).shuffle(order)

    with RecordReader(
        real_kafka,
        names["results"],
        names["replies"],
        names["dead_letters"],
        isolation="read_committed",
    ) as reader:
        for key in order:
            name = key.rpartition(" ")[0]
            if name in PILLS:
                made = PILLS[name]
                sender.send(key, made.payload, made.headers, made.content_type)
            elif key in ODDITIES:
                sender.send(key, ODDITIES[key][0], ODDITIES[key][1], b"text/plain")
            elif key in TOO_LARGE_FOR_THE_TOPIC:
                sender.send(key, *TOO_LARGE_FOR_THE_TOPIC[key], b"text/plain")
            else:
                sender.send(key, key.encode(), [], b"text/plain")
        sender.done()
        for partition in range(PARTITIONS):  # the client would not send these
            raw_headers.produce(
                real_kafka,
                names["requests"],
                b"raw",
                [(b"content-type", b"text/plain"), (b"\xff\xfe", b"x")],
                partition,
            )
        monkeypatch.setattr("tests.engine.Plugin", PoisonedPlugin)
        with running_worker(_settings(real_kafka, names, unique_group, delivery)):
            records = reader.answers(statuses)
            records += reader.rest(3)
    _check(records, names, statuses, bodies, letters)


def _settings(bootstrap: str, names: dict[str, str], group: str, delivery: str) -> Any:
    return settings_for(
        bootstrap,
        names,
        # A broker measures what is compressed; these payloads would shrink to nothing.
        kafka={"producer": {"compression.type": "none"}},
        worker={"group": group, "delivery": delivery, "instance_id": group},
        limits={"payload_bytes": PAYLOAD_BYTES, "result_bytes": RESULT_BYTES},
    )


def _limit(bootstrap: str, topic: str, size: int) -> None:
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(30)


def _check(
    records: Sequence[Record],
    names: dict[str, str],
    statuses: dict[str, str],
    bodies: dict[str, bytes],
    letters: Sequence[str],
) -> None:
    raw = [record for record in records if record.correlation_id == ""]
    named = [record for record in records if record.correlation_id != ""]
    answers = [record for record in named if record.topic != names["dead_letters"]]
    dead = [record for record in named if record.topic == names["dead_letters"]]

    counted = Counter(answer.correlation_id for answer in answers)
    assert counted.keys() == statuses.keys()
    assert {key: count for key, count in counted.items() if count != 1} == {}, "answered twice"
    assert {answer.topic for answer in answers} == {names["results"]}
    wrong = {
        answer.correlation_id: answer.status
        for answer in answers
        if answer.status != statuses[answer.correlation_id]
    }
    assert wrong == {}
    for answer in answers:
        if answer.correlation_id in bodies:
            assert answer.value == bodies[answer.correlation_id], answer.correlation_id
        else:
            body = json.loads(answer.value or b"")
            assert body["type"].endswith(answer.status)
            assert "/secret/path" not in body["detail"]
    kept = Counter(letter.correlation_id for letter in dead)
    assert kept == Counter(letters)
    for letter in dead:
        assert letter.key == letter.correlation_id.encode()
        assert letter.header("__scorer.errors.status") == statuses[letter.correlation_id]
        name = letter.correlation_id.rpartition(" ")[0]
        if name in PILLS:
            assert letter.value == PILLS[name].payload

    # What has no readable header has no correlation id either.
    assert [(r.topic, r.status, r.value) for r in raw if r.topic == names["dead_letters"]] == [
        (names["dead_letters"], "", b"raw")
    ] * PARTITIONS
    assert [r.status for r in raw if r.topic == names["results"]] == [
        "invalid-request"
    ] * PARTITIONS
