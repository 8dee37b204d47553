"""What the engine promises to whoever knows a topic, on the embedded and on a real broker."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from stream_scorer.config import Settings
from tests import raw_headers
from tests.engine import MODEL, running_worker, settings_for
from tests.kafka_server import Broker, MakeTopics
from tests.numbers_plugin import expected
from tests.wire import Record, RecordReader, RequestProducer, Send, in_order

PARTITIONS = 4
TIMEOUT = 30.0


@dataclass
class Stage:
    """A worker's topics, a producer to them and a reader of all that comes out."""

    bootstrap: str
    names: dict[str, str]
    producer: RequestProducer
    reader: RecordReader
    group: str
    delivery: str
    real: bool

    def settings(self, **sections: Any) -> Settings:
        worker = {"group": self.group, "delivery": self.delivery, **sections.pop("worker", {})}
        return settings_for(self.bootstrap, self.names, worker=worker, **sections)

    def split(self, records: list[Record]) -> tuple[list[Record], list[Record]]:
        """Answers and dead letters."""
        dead = self.names["dead_letters"]
        return [r for r in records if r.topic != dead], [r for r in records if r.topic == dead]


MODES = [
    ("embedded", "at_least_once"),  # it keeps no transactions
    ("kafka", "at_least_once"),
    ("kafka", "exactly_once"),
]


@pytest.fixture(params=MODES, ids="-".join)
def mode(request: pytest.FixtureRequest) -> tuple[str, str]:
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture
def broker(mode: tuple[str, str], request: pytest.FixtureRequest) -> Broker:
    real = mode[0] == "kafka"
    return Broker(request.getfixturevalue("real_kafka" if real else "embedded_broker"), real)


@pytest.fixture
def stage(
    mode: tuple[str, str], broker: Broker, topics: MakeTopics, unique_group: str
) -> Iterator[Stage]:
    kinds = ("requests", "results", "replies", "dead_letters")
    names = dict(zip(kinds, topics(PARTITIONS, *kinds), strict=True))
    producer = RequestProducer(broker.bootstrap, names["requests"])
    out = [names[kind] for kind in kinds[1:]]
    with RecordReader(broker.bootstrap, *out, isolation="read_committed") as reader:
        yield Stage(broker.bootstrap, names, producer, reader, unique_group, mode[1], broker.real)


def test_a_result_carries_all_that_the_contract_says(stage: Stage) -> None:
    request = Send(
        b"14",
        content_type="text/plain; charset=utf-8",
        key=b"\x00key",
        partition=2,
        headers={"x-tenant": b"a", "traceparent": b"00-ab-cd-01", "cookie": b"secret"},
    )
    with running_worker(stage.settings()):
        (correlation_id,) = stage.producer.send(request)
        (answer,) = stage.reader.answers([correlation_id])
        assert stage.reader.rest() == []
    assert answer.topic == stage.names["results"]
    assert answer.partition == 2
    assert (answer.key, answer.value) == (b"\x00key", expected(14))
    assert answer.header("content-type") == "text/plain"
    assert answer.status == "ok"
    assert answer.header("request") == f"{stage.names['requests']}/2/0"
    assert answer.header("model") == MODEL
    assert answer.header("x-tenant") == "a"
    assert answer.header("traceparent") == "00-ab-cd-01"
    assert answer.header("cookie") == ""
    stages = ", ".join(rf"{name};dur=\d+\.\d+" for name in ("decode", "predict", "encode"))
    pattern = rf"queue;dur=\d+, {stages}"
    assert re.fullmatch(pattern, answer.header("server-timing"))


def test_an_answer_goes_where_its_request_asks(stage: Stage) -> None:
    replies = stage.names["replies"].encode()
    named = Send(b"1", partition=0, headers={"reply-topic": replies, "reply-partition": b"3"})
    beside = Send(b"2", partition=1, headers={"reply-topic": replies})
    with running_worker(stage.settings()):
        ids = stage.producer.send(named, beside)
        answers = stage.reader.answers(ids)
        assert stage.reader.rest() == []
    places = {a.value: (a.topic, a.partition) for a in answers}
    assert places == {
        expected(1): (stage.names["replies"], 3),
        expected(2): (stage.names["replies"], 1),
    }


BAD: dict[str, tuple[Callable[[Stage], Send], str, int, str]] = {
    "refused by decode": (lambda _: Send(b"abc"), "invalid-payload", 400, "unless replied"),
    "a bug in decode": (lambda _: Send(b"decode-bug"), "invalid-payload", 400, "unless replied"),
    "empty": (lambda _: Send(b""), "invalid-payload", 400, "unless replied"),
    "null": (lambda _: Send(None), "invalid-payload", 400, "unless replied"),
    "no content type": (
        lambda _: Send(b"1", content_type=None),
        "unsupported-content-type",
        415,
        "unless replied",
    ),
    "another content type": (
        lambda _: Send(b"1", content_type="image/png"),
        "unsupported-content-type",
        415,
        "unless replied",
    ),
    "a malformed content type": (
        lambda _: Send(b"1", content_type=";;"),
        "unsupported-content-type",
        415,
        "unless replied",
    ),
    "a content type that is no text": (
        lambda _: Send(b"1", content_type=None, headers={"content-type": b"\xff"}),
        "invalid-request",
        400,
        "always",
    ),
    "too large": (lambda _: Send(b"1" * 2000), "payload-too-large", 413, "unless replied"),
    "a deadline that is no number": (
        lambda _: Send(b"1", headers={"deadline": b"soon"}),
        "invalid-request",
        400,
        "always",
    ),
    "a deadline that has passed": (
        lambda _: Send(b"1", headers={"deadline": b"1000"}),
        "expired",
        504,
        "never",
    ),
    "predict raises": (lambda _: Send(b"boom"), "model-error", 500, "always"),
    "predict exits": (lambda _: Send(b"exit"), "model-error", 500, "always"),
    "predict forgets one": (lambda _: Send(b"short"), "model-error", 500, "always"),
    "the result is too large": (lambda _: Send(b"big:3000"), "model-error", 500, "always"),
}


@pytest.mark.parametrize("replied", [False, True], ids=["to results", "replied"])
def test_what_cannot_be_scored_gets_its_problem_and_harms_no_other(
    stage: Stage, replied: bool
) -> None:
    reply = {"reply-topic": stage.names["replies"].encode()} if replied else {}
    cases: dict[str, str] = {}
    requests: list[Send] = []
    good: dict[str, int] = {}
    for number, (name, (make, *_)) in enumerate(BAD.items()):
        bad = make(stage)
        bad.headers |= reply
        bad.key = name.encode()
        cases[bad.correlation_id] = name
        neighbour = Send(str(number).encode(), headers=dict(reply))
        good[neighbour.correlation_id] = number
        requests += [bad, neighbour]
    for request in requests:
        request.partition = 1  # one partition: they are taken, and predicted, together
    limits = {"payload_bytes": 1000, "result_bytes": 1000}
    stage.producer.send(*requests)
    with running_worker(stage.settings(limits=limits)):
        records = stage.reader.answers(list(cases) + list(good))
        records += stage.reader.rest()
    answers, dead = stage.split(records)

    assert Counter(a.correlation_id for a in answers) == Counter([*cases, *good])
    assert [a.correlation_id for a in answers] == [r.correlation_id for r in requests]
    by_id = {answer.correlation_id: answer for answer in answers}
    for correlation_id, number in good.items():
        assert (by_id[correlation_id].status, by_id[correlation_id].value) == (
            "ok",
            expected(number),
        )
    payloads = {request.correlation_id: request.payload for request in requests}
    letters = {letter.correlation_id: letter for letter in dead}
    for correlation_id, name in cases.items():
        _, status, number, policy = BAD[name]
        answer = by_id[correlation_id]
        assert answer.topic == stage.names["replies" if replied else "results"], name
        assert answer.status == status, name
        assert answer.header("content-type") == "application/problem+json"
        assert answer.key == name.encode()
        body = json.loads(answer.value or b"")
        assert body["status"] == number, name
        assert body["type"].endswith(status)
        assert body["request"] == answer.header("request")
        assert body["correlation_id"] == correlation_id
        assert "/secret/path" not in body["detail"]
        assert "Traceback" not in body["detail"]
        if status == "unsupported-content-type":
            assert "text/plain" in body["detail"]
        kept = policy == "always" or (policy == "unless replied" and not replied)
        assert (correlation_id in letters) == kept, name
        if kept:
            letter = letters.pop(correlation_id)
            assert (letter.key, letter.value) == (name.encode(), payloads[correlation_id]), name
            assert letter.header("__scorer.errors.status") == status
            place = [
                letter.header(f"__scorer.errors.{part}")
                for part in ("topic", "partition", "offset")
            ]
            assert "/".join(place) == answer.header("request")
            assert letter.header("__scorer.errors.attempts") == "1"
    assert letters == {}, "dead letters of nothing"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"reply-topic": b"somebody-elses"}, "may not be sent"),
        ({"reply-topic": b"{requests}"}, "may not be sent"),
        ({"reply-topic": b"{replies}", "reply-partition": b"99"}, "has 4 partitions"),
        ({"reply-topic": b"{replies}", "reply-partition": b"-1"}, "not a decimal number"),
        ({"reply-topic": b"{replies}", "reply-partition": b"one"}, "not a decimal number"),
        ({"reply-topic": b"\xff"}, "not UTF-8"),
        ({"reply-partition": b"0"}, "without reply-topic"),
    ],
)
def test_a_reply_address_that_cannot_be_used_is_answered_on_the_results(
    stage: Stage, headers: dict[str, bytes], why: str
) -> None:
    for kind in ("requests", "replies"):
        name = stage.names[kind].encode()
        headers = {k: v.replace(b"{%s}" % kind.encode(), name) for k, v in headers.items()}
    bad, good = Send(b"1", headers=headers), Send(b"2")
    with running_worker(stage.settings()):
        ids = stage.producer.send(bad, good)
        records = stage.reader.answers(ids)
        records += stage.reader.rest()
    answers, dead = stage.split(records)
    by_id = {answer.correlation_id: answer for answer in answers}
    assert by_id[good.correlation_id].value == expected(2)
    answer = by_id[bad.correlation_id]
    assert answer.topic == stage.names["results"]
    assert answer.status == "invalid-request"
    assert why in json.loads(answer.value or b"")["detail"]
    assert [letter.correlation_id for letter in dead] == [bad.correlation_id]


def test_a_header_name_that_is_not_utf_8_does_not_stop_the_worker(stage: Stage) -> None:
    raw_headers.produce(
        stage.bootstrap,
        stage.names["requests"],
        b"1",
        [(b"content-type", b"text/plain"), (b"\xff\xfe", b"x")],
        partition=3,
    )
    with running_worker(stage.settings()):
        ids = stage.producer.send(Send(b"2", partition=3))
        records = stage.reader.answers(ids)
        records += stage.reader.rest()
    answers, dead = stage.split(records)
    bad, good = answers
    assert good.value == expected(2)
    assert bad.status == "invalid-request"
    assert bad.header("request") == f"{stage.names['requests']}/3/0"
    assert "not UTF-8" in json.loads(bad.value or b"")["detail"]
    assert [letter.value for letter in dead] == [b"1"]


def test_a_payload_without_content_type_is_read_by_the_default_where_one_is_set(
    stage: Stage,
) -> None:
    settings = stage.settings(topics={**stage.names, "default_content_type": "text/plain"})
    with running_worker(settings):
        ids = stage.producer.send(Send(b"5", content_type=None))
        (answer,) = stage.reader.answers(ids)
    assert answer.value == expected(5)


def test_order_is_kept_within_a_partition(stage: Stage) -> None:
    requests = [Send(str(n).encode(), partition=n % PARTITIONS) for n in range(2000)]
    stage.producer.send(*requests)
    with running_worker(stage.settings(worker={"max_batch_size": 7, "max_turn": 50})):
        answers = stage.reader.answers([r.correlation_id for r in requests])
    if stage.delivery == "exactly_once":
        assert len(answers) == len(requests)
    for partition, records in in_order(answers):
        sent = [r.correlation_id for r in requests if r.partition == partition]
        # At least once, a group that a slow machine breaks up answers some again.
        assert list(dict.fromkeys(record.correlation_id for record in records)) == sent


def test_a_broken_model_is_answered_for_all_without_trying_each(stage: Stage) -> None:
    requests = [Send(b"boom", partition=0) for _ in range(300)]
    stage.producer.send(*requests)
    with running_worker(stage.settings()):
        records = stage.reader.answers([r.correlation_id for r in requests])
        records += stage.reader.rest()
    answers, dead = stage.split(records)
    assert {answer.status for answer in answers} == {"model-error"}
    assert len(answers) == len(dead) == len(requests)


def test_a_replayed_dead_letter_counts_its_attempts(stage: Stage) -> None:
    with running_worker(stage.settings()):
        stage.producer.send(Send(b"abc", headers={"x-origin": b"shop"}))
        letters: list[Record] = []
        for attempt in range(1, 4):
            records = stage.reader.read(2)
            (letter,) = stage.split(records)[1]
            letters.append(letter)
            assert letter.header("__scorer.errors.attempts") == str(attempt)
            headers = {k: v for k, v in letter.headers if k not in {"correlation-id"}}
            stage.producer.send(Send(letter.value, content_type=None, headers=headers))
        stage.reader.read(2)
    names = [[name for name, _ in letter.headers] for letter in letters]
    assert sorted(names[0]) == sorted(names[-1]), "error headers are replaced, never appended"
    assert letters[-1].header("x-origin") == "shop"


def test_a_slow_predict_keeps_its_partitions(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stream_scorer")
    consumer = {
        "session.timeout.ms": 3000,
        "heartbeat.interval.ms": 500,
        "max.poll.interval.ms": 3000,
    }
    settings = stage.settings(
        kafka={"bootstrap.servers": stage.bootstrap, "consumer": consumer},
        worker={"max_turn": 1},
    )
    with running_worker(settings):
        ids = stage.producer.send(Send(b"slow:5", partition=0), Send(b"1", partition=0))
        answers = stage.reader.answers(ids)
        assert "assigned partitions" in caplog.text
        assert "lost partitions" not in caplog.text
        assert "revoked partitions" not in caplog.text
    assert [answer.value for answer in answers] == [b"slow", expected(1)]


def test_after_a_stop_nothing_is_answered_again(stage: Stage) -> None:
    requests = [Send(str(n).encode()) for n in range(500)]
    with running_worker(stage.settings()):
        stage.producer.send(*requests[:300])
        stage.reader.answers([r.correlation_id for r in requests[:300]])
    stage.producer.send(*requests[300:])
    with running_worker(stage.settings()):
        answers = stage.reader.answers([r.correlation_id for r in requests[300:]])
        answers += stage.reader.rest()
    assert Counter(a.correlation_id for a in answers) == Counter(
        r.correlation_id for r in requests[300:]
    )


def test_how_far_behind_a_group_is_can_be_told_while_it_has_no_worker(stage: Stage) -> None:
    """So it can be scaled to zero, and from there: a new group commits where it begins."""
    outside = Outside(stage)
    ids = stage.producer.send(*(Send(str(n).encode(), partition=0) for n in range(3)))
    outside.send_and_delete(partition=1, count=2)  # as retention does
    assert outside.lag("earliest") > 0, "enough to start the first worker"
    with running_worker(stage.settings()):
        answers = stage.reader.answers(ids)
        outside.wait_for_positions()
    # By either rule for partitions without a committed offset: there is none.
    assert (outside.lag("latest"), outside.lag("earliest")) == (0, 0), "enough to stop the last"
    ids += (late := stage.producer.send(*(Send(b"7", partition=n) for n in range(PARTITIONS))))
    assert (outside.lag("latest"), outside.lag("earliest")) == (PARTITIONS, PARTITIONS)
    with running_worker(stage.settings()):
        answers += stage.reader.answers(late)
    assert Counter(answer.correlation_id for answer in answers) == Counter(ids)
    assert outside.lag("latest") == 0


class Outside:
    """Who looks at a group from outside, as an autoscaler (KEDA) does."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._client: dict[str, Any] = {"bootstrap.servers": stage.bootstrap, "log_level": 0}
        self._consumer = Consumer({**self._client, "group.id": stage.group})

    def positions(self) -> list[TopicPartition]:
        topic = self._stage.names["requests"]
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        return self._consumer.committed(places, TIMEOUT)

    def lag(self, policy: str) -> int:
        """KEDA's sum, by its ``offsetResetPolicy`` where nothing is committed."""
        lag = 0
        for place in self.positions():
            end = self._consumer.get_watermark_offsets(place, TIMEOUT, cached=False)[1]
            if place.offset >= 0:
                lag += end - place.offset
            else:
                lag += end if policy == "earliest" else 1
        return lag

    def wait_for_positions(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while any(place.offset < 0 for place in self.positions()):
            assert time.monotonic() < deadline, "not all partitions have a committed offset"
            time.sleep(0.05)

    def send_and_delete(self, partition: int, count: int) -> None:
        if not self._stage.real:
            return  # it cannot delete records
        self._stage.producer.send(*[Send(b"1", partition=partition)] * count)
        place = TopicPartition(self._stage.names["requests"], partition, count)
        admin = AdminClient(self._client)
        for future in admin.delete_records([place]).values():
            future.result(TIMEOUT)


def test_a_second_worker_takes_its_share_and_gives_it_back(stage: Stage) -> None:
    batches = [[Send(str(n).encode()) for n in range(200)] for _ in range(4)]
    with running_worker(stage.settings()) as first:
        stage.producer.send(*batches[0])
        with running_worker(stage.settings(worker={"slot": 1})) as second:
            stage.producer.send(*batches[1])
            deadline = time.monotonic() + 30
            while not second._consumer._epochs or len(first._consumer._epochs) == PARTITIONS:
                assert time.monotonic() < deadline, "the second worker got no partition"
                time.sleep(0.05)
            stage.producer.send(*batches[2])
        stage.producer.send(*batches[3])
        sent = {r.correlation_id: r.payload for batch in batches for r in batch}
        answers = stage.reader.answers(sent)
    for answer in answers:
        payload = sent[answer.correlation_id]
        assert payload is not None
        assert answer.value == expected(int(payload))
