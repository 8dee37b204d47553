from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError

from stream_scorer.config import ConfigError, Settings
from stream_scorer.kafka.outputs import MAX_ECHO_BYTES
from stream_scorer.kafka.producer import AnswerProducer, DeliveryFailed
from stream_scorer.kafka.routes import Routes
from stream_scorer.protocol import Answer, Failure, Request, Status, problem
from tests.fakes import SIGNATURE, FakeProducer, FakeTopics, Sent, request

KNOWN = {"score-results": 4, "score-replies": 3, "score-requests.dlq": 2}
TOO_LARGE = [KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE]
ASTRAY = [
    *(KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.TOPIC_EXCEPTION),
    *(KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED),
]
BROKER_FAULTS = [KafkaError._MSG_TIMED_OUT, KafkaError._FATAL, KafkaError.NOT_ENOUGH_REPLICAS]


class Rig:
    """An ``AnswerProducer`` on a ``FakeProducer``, and what it reports."""

    def __init__(self, **settings: Any) -> None:
        self.queue_full: Callable[[], None] = lambda: None
        self.clients: list[FakeProducer] = []
        self.settings = Settings.model_validate(settings)

    @property
    def client(self) -> FakeProducer:
        (only,) = self.clients
        return only

    def make_client(self, properties: dict[str, Any]) -> FakeProducer:
        self.clients.append(FakeProducer(properties))
        return self.client

    def producer(self, largest_request: int = 0) -> AnswerProducer:
        return AnswerProducer(
            self.settings,
            Routes(self.settings.topics, FakeTopics(KNOWN)),
            signature=SIGNATURE,
            queue_full=lambda: self.queue_full(),
            largest_request=largest_request,
        )

    def fail(self, code: int, when: Callable[[Sent], bool] = lambda _: True) -> None:
        """Have the broker refuse some records."""
        self.client.outcome = lambda sent: KafkaError(code) if when(sent) else None

    def bodies(self, topic: str) -> list[Any]:
        return [json.loads(sent.value or b"null") for sent in self.client.to(topic)]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    fresh = Rig()
    monkeypatch.setattr("stream_scorer.kafka.producer.Producer", fresh.make_client)
    return fresh


def scored(asked: Request, body: bytes = b"[1]") -> Answer:
    return Answer(asked, Status.OK, "application/json", body)


def asking(offset: int = 0, partition: int = 0, **fields: Any) -> Request:
    """A request for a reply to partition 2 of the replies topic."""
    return request(
        partition, offset, reply_topic="score-replies", reply_partition=2, key=b"k", **fields
    )


def settle(producer: AnswerProducer) -> None:
    """Have everything delivered, what follows from refusals too."""
    for _ in range(6):
        producer.flush(1)


def is_answer(sent: Sent) -> bool:
    return sent.topic != "score-requests.dlq"


def test_an_answer_goes_to_its_address_with_key_body_and_headers(rig: Rig) -> None:
    producer = rig.producer()
    answer = scored(asking(7, correlation_id=b"\x00\xff", passed_through=[("x-a", b"1")]))
    producer.publish(answer)
    (sent,) = rig.client.sent
    assert (sent.topic, sent.partition) == ("score-replies", 2)
    assert (sent.key, sent.value) == (b"k", b"[1]")
    assert sent.headers == answer.headers(SIGNATURE)


def test_without_a_reply_address_it_goes_to_the_results_in_order(rig: Rig) -> None:
    producer = rig.producer()
    producer.publish(scored(request(6, 1)))
    (sent,) = rig.client.sent
    assert (sent.topic, sent.partition, sent.key) == ("score-results", 2, None)


@pytest.mark.parametrize(
    ("status", "replies", "results"),
    [
        (Status.OK, 0, 0),
        (Status.EXPIRED, 0, 0),
        (Status.INVALID_PAYLOAD, 0, 1),
        (Status.UNSUPPORTED_CONTENT_TYPE, 0, 1),
        (Status.PAYLOAD_TOO_LARGE, 0, 1),
        (Status.INVALID_REQUEST, 1, 1),
        (Status.MODEL_ERROR, 1, 1),
    ],
)
def test_a_dead_letter_is_in_addition_never_instead(
    rig: Rig, status: Status, replies: int, results: int
) -> None:
    producer = rig.producer()
    for asked, letters in ((asking(1), replies), (request(0, 2), results)):
        rig.client.sent.clear()
        producer.publish(problem(asked, status, "no"))
        assert len([sent for sent in rig.client.sent if is_answer(sent)]) == 1
        assert len(rig.client.to("score-requests.dlq")) == letters


def test_a_dead_letter_holds_the_request_byte_for_byte(rig: Rig) -> None:
    producer = rig.producer()
    came: list[tuple[str, bytes | None]] = [("a", b"\xff"), ("a", b"2")]
    asked = request(3, 14, b"\x00\xff", key=b"\xffk", headers=came)
    producer.publish(problem(asked, Status.MODEL_ERROR, "no", Failure("a.B", "c", "trace")))
    (letter,) = rig.client.to("score-requests.dlq")
    assert (letter.key, letter.value, letter.partition) == (b"\xffk", b"\x00\xff", 1)
    assert letter.headers[:2] == came
    assert letter.header("__scorer.errors.stacktrace") == b"trace"


def test_a_null_payload_stays_null_in_the_dead_letter(rig: Rig) -> None:
    producer = rig.producer()
    producer.publish(problem(request(payload=None), Status.INVALID_PAYLOAD, "empty"))
    (letter,) = rig.client.to("score-requests.dlq")
    assert letter.value is None


def test_what_is_not_acknowledged_is_in_flight(rig: Rig) -> None:
    producer = rig.producer()
    rig.client.stalled = True
    producer.publish(problem(request(0, 5), Status.MODEL_ERROR, "no"))
    producer.poll()
    assert producer.in_flight() == 2, "the answer and the dead letter"
    rig.client.stalled = False
    producer.poll()
    assert producer.in_flight() == 0


def test_what_is_to_be_sent_again_is_in_flight(rig: Rig) -> None:
    """A commit must not take it for delivered in the moment when nothing is queued."""
    producer = rig.producer()
    rig.fail(TOO_LARGE[0], is_answer)
    producer.publish(scored(request(0, 5)))
    rig.client.poll()
    assert len(rig.client) == 0
    assert producer.in_flight() == 1


@pytest.mark.parametrize("code", BROKER_FAULTS)
@pytest.mark.parametrize("broken", ["score-results", "score-requests.dlq"])
def test_what_the_broker_does_not_take_is_never_done(rig: Rig, code: int, broken: str) -> None:
    producer = rig.producer()
    rig.fail(code, lambda sent: sent.topic == broken)
    producer.publish(problem(request(0, 5), Status.MODEL_ERROR, "no"))
    for serve in (producer.poll, lambda: producer.flush(1), producer.poll):
        with pytest.raises(DeliveryFailed):
            serve()


def test_a_failed_delivery_ends_the_process_with_1() -> None:
    assert DeliveryFailed.exit_code == 1


def test_what_the_client_refuses_at_once_is_told_at_the_next_poll(rig: Rig) -> None:
    producer = rig.producer()
    rig.client.refusal = lambda _: KafkaError(KafkaError._FATAL, "fenced")
    producer.publish(scored(request(0, 5)))
    with pytest.raises(DeliveryFailed, match="fenced"):
        producer.poll()


@pytest.mark.parametrize("code", TOO_LARGE)
@pytest.mark.parametrize("by", ["client", "broker"])
def test_an_answer_too_large_for_its_topic_becomes_a_model_error(
    rig: Rig, code: int, by: str
) -> None:
    producer = rig.producer()

    def judge(sent: Sent) -> KafkaError | None:
        large = is_answer(sent) and len(sent.value or b"") > 1000
        return KafkaError(code) if large else None

    rig.client.refusal = judge if by == "client" else rig.client.refusal
    rig.client.outcome = judge if by == "broker" else rig.client.outcome
    producer.publish(scored(asking(5, correlation_id=b"id"), b"x" * 2000))
    settle(producer)
    answer = rig.client.to("score-replies")[-1]
    assert answer.header("status") == b"model-error"
    assert (answer.key, answer.header("correlation-id")) == (b"k", b"id")
    assert answer.partition == 2
    (letter,) = rig.client.to("score-requests.dlq")
    assert letter.header("__scorer.errors.status") == b"model-error"
    assert producer.in_flight() == 0


def test_what_was_refused_with_its_batch_is_sent_again_by_itself(rig: Rig) -> None:
    """The broker refuses whole batches for their size; each record in them may be small."""
    producer = rig.producer()
    rig.fail(TOO_LARGE[0], lambda _: rig.client.batch > 1)
    for offset in (5, 6, 7):
        producer.publish(scored(request(0, offset)))
    settle(producer)
    answers = rig.client.to("score-results")
    assert {sent.header("status") for sent in answers} == {b"ok"}
    assert [sent.header("request") for sent in answers[3:]] == [
        b"score-requests/0/5",
        b"score-requests/0/6",
        b"score-requests/0/7",
    ]
    assert rig.client.to("score-requests.dlq") == []
    assert producer.in_flight() == 0


def test_what_was_under_way_as_its_topic_went_is_sent_again(rig: Rig) -> None:
    """The client tells of it as of one that ends."""
    producer = rig.producer()
    codes = iter([KafkaError._DESTROY, KafkaError._UNKNOWN_TOPIC])
    rig.client.outcome = lambda sent: (
        KafkaError(next(codes)) if sent.topic == "score-replies" else None
    )
    producer.publish(scored(asking(5)))
    settle(producer)
    assert len(rig.client.to("score-replies")) == 2
    (answer,) = rig.client.to("score-results")
    assert answer.header("status") == b"invalid-request"
    assert producer.in_flight() == 0


def test_what_is_to_be_sent_by_itself_holds_up_nobody(rig: Rig) -> None:
    """Its turn comes in poll and flush, between which the worker stays in its group."""
    producer = rig.producer()
    rig.fail(TOO_LARGE[0])
    producer.publish(scored(request(0, 5)))
    rig.client.poll()
    rig.client.stalled = True
    for offset in range(6, 20):
        producer.publish(scored(request(0, offset)))
        producer.poll()
    assert rig.client.flushes == []
    assert producer.in_flight() == 15


def test_what_comes_back_from_the_request_may_be_what_is_too_large(rig: Rig) -> None:
    producer = rig.producer()

    def size(sent: Sent) -> int:
        parts = [sent.key, sent.value, *(value for _, value in sent.headers)]
        return sum(len(part or b"") for part in parts)

    rig.fail(TOO_LARGE[0], lambda sent: is_answer(sent) and size(sent) > 2 * MAX_ECHO_BYTES)
    huge = b"x" * 100_000
    asked = request(0, 5, key=huge, correlation_id=huge, passed_through=[("x-a", huge)])
    producer.publish(scored(asked))
    settle(producer)
    answer = rig.client.to("score-results")[-1]
    assert rig.client.outcome(answer) is None, "taken by the broker"
    assert answer.key is None
    assert answer.header("status") == b"model-error"
    assert answer.header("request") == b"score-requests/0/5"
    (letter,) = rig.client.to("score-requests.dlq")
    assert letter.key == huge
    assert producer.in_flight() == 0


def test_an_answer_that_was_a_dead_letter_already_gets_no_second_one(rig: Rig) -> None:
    producer = rig.producer()
    rig.fail(TOO_LARGE[0], lambda sent: len(sent.value or b"") > 400 and is_answer(sent))
    producer.publish(problem(request(0, 5), Status.MODEL_ERROR, "x" * 1000))
    settle(producer)
    assert len(rig.client.to("score-requests.dlq")) == 1
    assert rig.bodies("score-results")[-1]["detail"] == "the answer is too large for its topic"
    assert producer.in_flight() == 0


def test_a_topic_too_small_for_any_answer_does_not_stop_the_worker(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    producer = rig.producer()
    rig.fail(TOO_LARGE[0], is_answer)
    producer.publish(scored(request(0, 5)))
    settle(producer)
    assert len(rig.client.to("score-results")) == 2 * 2, "each of them once more by itself"
    assert len(rig.client.to("score-requests.dlq")) == 1
    assert producer.in_flight() == 0
    assert "score-requests/0/5" in caplog.text


@pytest.mark.parametrize("code", ASTRAY)
def test_a_reply_topic_that_vanished_is_told_on_the_results(rig: Rig, code: int) -> None:
    producer = rig.producer()
    rig.fail(code, lambda sent: sent.topic == "score-replies")
    producer.publish(scored(asking(5, partition=3, correlation_id=b"id")))
    settle(producer)
    (answer,) = rig.client.to("score-results")
    assert answer.header("status") == b"invalid-request"
    assert (answer.partition, answer.key, answer.header("correlation-id")) == (3, b"k", b"id")
    assert rig.bodies("score-results")[0]["detail"] == (
        "the answer cannot be sent to topic 'score-replies'"
    )
    assert len(rig.client.to("score-requests.dlq")) == 1
    assert producer.in_flight() == 0


@pytest.mark.parametrize("code", ASTRAY)
def test_results_that_cannot_be_sent_anywhere_are_the_brokers_fault(rig: Rig, code: int) -> None:
    producer = rig.producer()
    rig.fail(code, is_answer)
    producer.publish(scored(asking(5)))
    with pytest.raises(DeliveryFailed):
        for _ in range(3):
            producer.flush(1)


def test_an_answer_sent_elsewhere_may_still_be_too_large_there(rig: Rig) -> None:
    """Every request ends in an answer, also when two things go wrong with it."""
    producer = rig.producer()

    def outcome(sent: Sent) -> KafkaError | None:
        if sent.topic == "score-replies":
            return KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        if sent.topic == "score-results" and sent.header("x-a") is not None:
            return KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
        return None

    rig.client.outcome = outcome
    producer.publish(scored(asking(5, passed_through=[("x-a", b"x" * 1000)])))
    for _ in range(4):
        producer.flush(1)
    answer = rig.client.to("score-results")[-1]
    assert outcome(answer) is None
    assert len(rig.client.to("score-requests.dlq")) == 1
    assert producer.in_flight() == 0


@pytest.mark.parametrize("by", ["client", "broker"])
def test_over_the_limit_the_trace_goes_never_the_record(rig: Rig, by: str) -> None:
    producer = rig.producer()

    def judge(sent: Sent) -> KafkaError | None:
        traced = sent.header("__scorer.errors.stacktrace") is not None
        return KafkaError(TOO_LARGE[0]) if traced else None

    rig.client.refusal = judge if by == "client" else rig.client.refusal
    rig.client.outcome = judge if by == "broker" else rig.client.outcome
    failure = Failure("a.B", "c", "trace")
    producer.publish(problem(request(0, 5, b"payload"), Status.MODEL_ERROR, "no", failure))
    settle(producer)
    letter = rig.client.to("score-requests.dlq")[-1]
    assert letter.value == b"payload"
    assert letter.header("__scorer.errors.exception") == b"a.B"
    assert letter.header("__scorer.errors.stacktrace") is None
    assert producer.in_flight() == 0


def test_a_dead_letter_topic_too_small_for_the_record_does_not_stop_the_worker(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    producer = rig.producer()
    rig.fail(TOO_LARGE[0], lambda sent: not is_answer(sent))
    producer.publish(problem(request(0, 5), Status.MODEL_ERROR, "no", Failure("a.B", "c", "t")))
    settle(producer)
    assert producer.in_flight() == 0
    assert "score-requests/0/5: too large for the dead-letter topic" in caplog.text


def test_a_full_queue_is_waited_for_and_nothing_is_dropped(rig: Rig) -> None:
    producer = rig.producer()
    rig.client.room = 1
    rig.client.stalled = True
    waited = 0

    def queue_full() -> None:
        nonlocal waited
        waited += 1
        if waited % 3 == 0:
            rig.client.deliver_one()

    rig.queue_full = queue_full
    for offset in range(4):
        producer.publish(scored(request(0, offset)))
    assert waited == 9
    assert [sent.header("request") for sent in rig.client.sent] == [
        b"score-requests/0/%d" % offset for offset in range(4)
    ]
    assert producer.in_flight() == 1


def test_waiting_for_a_full_queue_can_be_given_up(rig: Rig) -> None:
    producer = rig.producer()
    rig.client.room = 0

    def give_up() -> None:
        raise TimeoutError

    rig.queue_full = give_up
    with pytest.raises(TimeoutError):
        producer.publish(scored(request()))


def test_flush_tells_what_is_left(rig: Rig) -> None:
    producer = rig.producer()
    rig.client.stalled = True
    producer.publish(scored(request(0, 1)))
    producer.publish(scored(request(0, 2)))
    assert producer.flush(0.5) == 2
    assert rig.client.flushes == [0.5]
    rig.client.stalled = False
    assert producer.flush(0.5) == 0


def test_abandoning_tells_how_much_was_left(rig: Rig) -> None:
    producer = rig.producer()
    rig.client.stalled = True
    producer.publish(problem(request(0, 1), Status.MODEL_ERROR, "no"))
    assert producer.abandon() == 2
    assert rig.client.purged


def test_the_producer_loses_and_repeats_nothing_by_itself(rig: Rig) -> None:
    rig.producer()
    assert rig.client.properties["enable.idempotence"] is True
    assert rig.client.properties["allow.auto.create.topics"] is False


@pytest.mark.parametrize("largest", [0, 5_000_000])
def test_a_dead_letter_may_be_64_kib_larger_than_any_request(rig: Rig, largest: int) -> None:
    rig.producer(largest_request=largest)
    limit = rig.client.properties["message.max.bytes"]
    assert limit >= max(largest, 1_048_588) + 64 * 1024


def test_the_users_properties_reach_the_client(rig: Rig) -> None:
    rig.settings = Settings.model_validate(
        {
            "kafka": {
                "linger.ms": 7,
                "socket.keepalive.enable": True,
                "consumer": {"fetch.min.bytes": 1},
                "producer": {"compression.type": "zstd"},
            }
        }
    )
    rig.producer()
    properties = rig.client.properties
    assert properties["linger.ms"] == 7
    assert properties["socket.keepalive.enable"] == "true"
    assert properties["compression.type"] == "zstd"
    assert "fetch.min.bytes" not in properties


@pytest.mark.parametrize(
    "kafka",
    [
        {"no.such.property": 1},
        {"linger.ms": "soon"},
        {"producer": {"acks": 0}},
    ],
)
def test_a_property_that_librdkafka_refuses_is_a_wrong_setting(kafka: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="@ kafka"):
        Rig(kafka=kafka).producer()


@pytest.mark.parametrize("size", [900_000, 10_000_000, 100_000_000])
def test_the_largest_record_that_the_limits_allow_fits_the_queue(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real client: one that can never be queued would be waited for without end."""
    rig = Rig(limits={"payload_bytes": size, "result_bytes": size})

    def give_up() -> None:
        pytest.fail("the queue is full of nothing")

    rig.queue_full = give_up
    producer = rig.producer(largest_request=size + 100_000)
    producer.publish(scored(request(0, 1), b"x" * size))
    producer.publish(problem(request(0, 2, b"x" * size), Status.MODEL_ERROR, "no"))
    assert producer.abandon() >= 3
