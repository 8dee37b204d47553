from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream_scorer.config import ConfigError, Settings
from stream_scorer.errors import OperationError
from stream_scorer.kafka import exactly_once
from stream_scorer.kafka.consumer import Fenced, RequestConsumer, Turn
from stream_scorer.kafka.exactly_once import REQUEST_TIMEOUT, ExactlyOnce
from stream_scorer.kafka.producer import DeliveryFailed
from stream_scorer.kafka.routes import Routes
from stream_scorer.protocol import Answer, Status, problem
from tests.fakes import SIGNATURE, FakeClock, FakeProducer, FakeTopics, Sent, request

KNOWN = {"score-results": 4, "score-replies": 3, "score-requests.dlq": 2}
METADATA = object()


def retriable() -> KafkaError:
    return KafkaError(KafkaError.COORDINATOR_LOAD_IN_PROGRESS, retriable=True)


def abortable(code: int = KafkaError.ILLEGAL_GENERATION) -> KafkaError:
    return KafkaError(code, txn_requires_abort=True)


def fatal(code: int = KafkaError._FENCED) -> KafkaError:
    return KafkaError(code, fatal=True)


class FakeTransactions(FakeProducer):
    """A transactional producer: notes its calls, commits what was delivered, purges the rest."""

    def __init__(self, log: list[str], errors: dict[str, deque[KafkaError]], name: int) -> None:
        super().__init__()
        self._log = log
        self._errors = errors
        self._name = name
        self.offsets: list[dict[int, int]] = []
        self.metadata: object = None
        self.committed: list[Sent] = []
        self.broken = False

    def _call(self, name: str) -> None:
        self._log.append(f"{name} {self._name}")
        if self._errors.get(name):
            raise KafkaException(self._errors[name].popleft())

    def init_transactions(self, timeout: float) -> None:
        self._call("init")

    def begin_transaction(self) -> None:
        self._call("begin")

    def send_offsets_to_transaction(
        self, places: list[TopicPartition], metadata: object, timeout: float
    ) -> None:
        self._call("offsets")
        assert {place.topic for place in places} == {"score-requests"}
        self.offsets.append({place.partition: place.offset for place in places})
        self.metadata = metadata

    def commit_transaction(self, timeout: float) -> None:
        refused = self._flush()
        self._call("commit")
        if refused:
            raise KafkaException(abortable(KafkaError._INCONSISTENT))
        self.committed += self.sent
        self.sent = []

    def abort_transaction(self, timeout: float) -> None:
        self._flush()
        self._call("abort")
        self.sent = []

    def _flush(self) -> bool:
        refused = any(self.outcome(record) is not None for record in self.sent)
        self.poll()
        return refused


class FakeOwner:
    """A consumer that owns ``owned``, and notes what it is asked for."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.owned = {0, 1, 2, 3}
        self.rewound: list[dict[int, int]] = []
        self.to_ask_again: list[int] = []

    def still_owned(self, turn: Turn, partition: int) -> bool:
        self._log.append("owned?")
        return partition in self.owned

    def group_metadata(self) -> object:
        self._log.append("metadata")
        return METADATA

    def rewind(self, first: dict[int, int]) -> None:
        self.rewound.append(first)

    def ask_again(self, partitions: Iterable[int]) -> None:
        self.to_ask_again += partitions


class Rig:
    """An ``ExactlyOnce`` on fake clients; ``errors`` are raised by the calls they are named for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.errors: dict[str, deque[KafkaError]] = {}
        self.producers: list[FakeTransactions] = []
        self.outcome: Callable[[Sent], KafkaError | None] = lambda _: None
        self.refusal: Callable[[Sent], KafkaError | None] = lambda _: None
        self.consumer = FakeOwner(self.log)
        self.waited = 0
        self.waiting: Callable[[], None] = lambda: None
        self.clock = FakeClock()
        monkeypatch.setattr(exactly_once, "Producer", self._make)
        monkeypatch.setattr(exactly_once, "monotonic", self.clock)
        self.settings = Settings.model_validate(
            {"worker": {"delivery": "exactly_once", "instance_id": "here", "slot": 2}}
        )

    def _make(self, properties: dict[str, Any]) -> FakeTransactions:
        producer = FakeTransactions(self.log, self.errors, len(self.producers))
        producer.properties = properties
        producer.outcome = lambda sent: self.outcome(sent)
        producer.refusal = lambda sent: self.refusal(sent)
        self.producers.append(producer)
        return producer

    def fail(self, call: str, *errors: KafkaError) -> None:
        self.errors[call] = deque(errors)

    def delivery(self) -> ExactlyOnce:
        def waiting() -> None:
            self.waited += 1
            self.waiting()

        return ExactlyOnce(
            self.settings,
            cast("RequestConsumer", self.consumer),
            Routes(self.settings.topics, FakeTopics(KNOWN)),
            signature=SIGNATURE,
            waiting=waiting,
        )

    def committed(self) -> list[Sent]:
        return [record for producer in self.producers for record in producer.committed]

    def answers(self) -> list[tuple[bytes | None, bytes | None]]:
        return [
            (sent.header("request"), sent.header("status"))
            for sent in self.committed()
            if sent.header("status") is not None
        ]

    def offsets(self) -> list[dict[int, int]]:
        return [offsets for producer in self.producers for offsets in producer.offsets]

    def calls(self) -> list[str]:
        return [line for line in self.log if line not in {"owned?", "metadata"}]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def scored(*places: tuple[int, int], **fields: Any) -> tuple[Turn, list[Answer]]:
    requests = [request(*place, **fields) for place in places]
    answers = [Answer(item, Status.OK, "application/json", b"1") for item in requests]
    return Turn(requests, {place[0]: 1 for place in places}), answers


def deliver(delivery: ExactlyOnce, turn: Turn, answers: list[Answer]) -> None:
    delivery.deliver(turn, answers)
    delivery.settle()


def ok(*places: tuple[int, int]) -> list[tuple[bytes, bytes]]:
    return [(b"score-requests/%d/%d" % place, b"ok") for place in places]


def test_a_lasting_name_and_bounded_transactions(rig: Rig) -> None:
    rig.delivery()
    (producer,) = rig.producers
    assert producer.properties["transactional.id"] == "stream-scorer-here-2"
    assert producer.properties["transaction.timeout.ms"] == 15_000
    assert producer.properties["enable.idempotence"] is True
    assert rig.calls() == ["init 0"]


def test_answers_letters_and_own_offsets_in_one_transaction(rig: Rig) -> None:
    delivery = rig.delivery()
    turn, answers = scored((0, 5), (0, 6), (3, 1))
    answers[1] = problem(answers[1].request, Status.MODEL_ERROR, "no")
    deliver(delivery, turn, answers)
    assert rig.calls() == ["init 0", "begin 0", "offsets 0", "commit 0"]
    assert rig.offsets() == [{0: 7, 3: 2}]
    assert [sent.topic for sent in rig.committed()] == [
        *("score-results", "score-results", "score-requests.dlq", "score-results")
    ]
    assert (delivery.counts.commits, delivery.counts.aborts, delivery.counts.renewals) == (1, 0, 0)


def test_where_partitions_begin_is_committed_in_a_transaction(rig: Rig) -> None:
    """The consumer's own commit could come late, after a turn's, and take that one back."""
    delivery = rig.delivery()
    delivery.commit_beginnings({0: 0, 3: 40})
    assert rig.calls() == ["init 0", "begin 0", "offsets 0", "commit 0"]
    assert rig.offsets() == [{0: 0, 3: 40}]
    assert rig.committed() == []
    assert rig.producers[0].metadata is METADATA
    deliver(delivery, *scored((0, 5)))
    assert rig.offsets() == [{0: 0, 3: 40}, {0: 6}], "once"


def test_the_turn_under_way_is_committed_before_beginnings(rig: Rig) -> None:
    delivery = rig.delivery()
    delivery.deliver(*scored((0, 5)))
    delivery.commit_beginnings({1: 0})
    assert rig.offsets() == [{0: 6}, {1: 0}]
    assert rig.answers() == ok((0, 5))


@pytest.mark.parametrize("call", ["begin", "offsets", "commit"])
def test_beginnings_that_cannot_be_committed_harm_no_turn(rig: Rig, call: str) -> None:
    delivery = rig.delivery()
    rig.fail(call, abortable())
    delivery.commit_beginnings({0: 0})
    assert (delivery.counts.commits, delivery.counts.aborts, delivery.counts.renewals) == (0, 1, 1)
    deliver(delivery, *scored((0, 5)))
    assert rig.answers() == ok((0, 5))
    assert rig.offsets()[-1] == {0: 6}
    assert rig.consumer.rewound == [], "nothing was taken back"
    assert rig.consumer.to_ask_again == [0]


def test_a_worker_whose_name_another_took_commits_no_beginnings(rig: Rig) -> None:
    delivery = rig.delivery()
    rig.fail("offsets", fatal())
    with pytest.raises(Fenced):
        delivery.commit_beginnings({0: 0})


def test_what_was_revoked_is_left_out_and_metadata_is_fresh(rig: Rig) -> None:
    delivery = rig.delivery()
    turn, answers = scored((0, 5), (1, 6), (0, 7))
    rig.consumer.owned = {1}
    rig.log.clear()
    deliver(delivery, turn, answers)
    assert rig.answers() == ok((1, 6))
    assert rig.offsets() == [{1: 7}]
    # Asked for when everything is produced, and given to the very next call.
    assert rig.log == ["owned?"] * 3 + ["begin 0", "metadata", "offsets 0", "commit 0"]
    assert rig.producers[0].metadata is METADATA


def test_a_turn_of_which_nothing_is_left_begins_no_transaction(rig: Rig) -> None:
    delivery = rig.delivery()
    turn, answers = scored((0, 5))
    rig.consumer.owned = set()
    deliver(delivery, turn, answers)
    assert rig.calls() == ["init 0"]


@pytest.mark.parametrize("call", ["offsets", "commit"])
def test_what_may_be_retried_is_retried_and_its_producer_replaced(rig: Rig, call: str) -> None:
    delivery = rig.delivery()
    rig.fail(call, retriable(), retriable())
    deliver(delivery, *scored((0, 5)))
    assert rig.answers() == ok((0, 5))
    assert rig.waited == 2
    assert rig.consumer.rewound == []
    assert rig.calls()[-1] == "init 1"
    assert delivery.counts.renewals == 1


@pytest.mark.parametrize("call", ["offsets", "commit"])
@pytest.mark.parametrize(
    "error",
    [abortable(), fatal(KafkaError.INVALID_TXN_STATE)],
    ids=["abortable", "fatal"],
)
def test_a_failed_transaction_is_read_again_with_a_new_producer(
    rig: Rig, call: str, error: KafkaError
) -> None:
    delivery = rig.delivery()
    rig.fail(call, error)
    turn, answers = scored((0, 5), (0, 6), (1, 9))
    deliver(delivery, turn, answers)
    assert rig.answers() == []
    assert rig.consumer.rewound == [{0: 5, 1: 9}]
    assert (delivery.counts.commits, delivery.counts.aborts, delivery.counts.renewals) == (0, 1, 1)
    deliver(delivery, turn, answers)
    assert rig.answers() == ok((0, 5), (0, 6), (1, 9))
    assert rig.calls()[-4:] == ["init 1", "begin 1", "offsets 1", "commit 1"]


@pytest.mark.parametrize("call", ["begin", "offsets", "commit"])
@pytest.mark.parametrize(
    "code",
    [
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
    ],
)
def test_who_is_fenced_ends(rig: Rig, call: str, code: int) -> None:
    delivery = rig.delivery()
    rig.fail(call, fatal(code))
    with pytest.raises(Fenced, match=r"'here-2.*worker\.instance_id"):
        deliver(delivery, *scored((0, 5)))
    assert len(rig.producers) == 1, "a new producer would fence the other"
    assert rig.consumer.rewound == []


def test_who_is_fenced_at_the_start_ends(rig: Rig) -> None:
    rig.fail("init", fatal())
    with pytest.raises(Fenced):
        rig.delivery()


def test_the_first_call_waits_for_the_broker(rig: Rig) -> None:
    rig.fail("init", retriable(), retriable(), retriable())
    rig.delivery()
    assert rig.waited == 3
    assert len(rig.producers) == 1


def test_without_transactions_there_is_no_start(rig: Rig) -> None:
    rig.fail("init", fatal(KafkaError.UNSUPPORTED_VERSION))
    with pytest.raises(DeliveryFailed, match="no transactions"):
        rig.delivery()


def test_without_the_right_to_its_transactions_there_is_no_start(rig: Rig) -> None:
    rig.fail("init", fatal(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED))
    with pytest.raises(DeliveryFailed, match="WRITE on transactional id stream-scorer-"):
        rig.delivery()


def test_a_property_that_librdkafka_refuses_is_a_configuration_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._INVALID_ARG, "no such property"))

    monkeypatch.setattr(exactly_once, "Producer", refuse)
    with pytest.raises(ConfigError, match="no such property @ kafka"):
        rig.delivery()


@pytest.mark.parametrize("call", ["init", "offsets", "commit"])
def test_a_drain_gives_up_what_is_retried_without_end(rig: Rig, call: str) -> None:
    delivery = rig.delivery()

    class Drained(Exception):
        pass

    def give_up() -> None:
        if rig.waited == 5:
            raise Drained

    rig.waiting = give_up
    rig.fail(call, *(retriable() for _ in range(100)))
    with pytest.raises(Drained):
        if call == "init":
            rig.delivery()
        deliver(delivery, *scored((0, 5)))
    assert rig.answers() == []


def test_what_the_broker_has_aborted_by_now_is_not_retried_any_more(rig: Rig) -> None:
    delivery = rig.delivery()
    rig.waiting = lambda: rig.clock.move(REQUEST_TIMEOUT)
    rig.fail("commit", *(retriable() for _ in range(100)))
    deliver(delivery, *scored((0, 5)))
    assert rig.answers() == []
    assert rig.consumer.rewound == [{0: 5}]
    assert rig.waited < 5
    assert rig.calls()[-1] == "init 1"


def test_a_slow_transaction_has_its_producer_replaced(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = rig.delivery()
    commit = FakeTransactions.commit_transaction

    def slow(producer: FakeTransactions, timeout: float) -> None:
        rig.clock.move(REQUEST_TIMEOUT)
        commit(producer, timeout)

    monkeypatch.setattr(FakeTransactions, "commit_transaction", slow)
    deliver(delivery, *scored((0, 5)))
    assert (delivery.counts.commits, delivery.counts.renewals) == (1, 1)
    assert rig.calls()[-1] == "init 1"


def broken_connection(properties: dict[str, Any]) -> None:
    """As librdkafka tells of one that it has repeated a request for: in its log alone."""
    properties["logger"].log(
        logging.INFO, "%s [%s] %s", "FAIL", "rdkafka#producer-1", "[thrd:TxnCoordinator]: gone"
    )


def trouble(properties: dict[str, Any]) -> None:
    properties["error_cb"](KafkaError(KafkaError._TRANSPORT, "gone"))


@pytest.mark.parametrize("happen", [broken_connection, trouble])
def test_trouble_in_a_transaction_has_its_producer_replaced(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, happen: Callable[[dict[str, Any]], None]
) -> None:
    """Told late, by the poll after the commit; trouble before it counts no more."""
    delivery = rig.delivery()
    properties = rig.producers[0].properties
    happen(properties)
    deliver(delivery, *scored((0, 5)))
    assert delivery.counts.renewals == 0

    poll = FakeTransactions.poll

    def poll_and_tell(producer: FakeTransactions, timeout: float = -1) -> int:
        if rig.log[-1] == "commit 0":
            happen(properties)
        return poll(producer, timeout)

    monkeypatch.setattr(FakeTransactions, "poll", poll_and_tell)
    deliver(delivery, *scored((0, 6)))
    assert (delivery.counts.commits, delivery.counts.renewals) == (2, 1)


def test_of_the_clients_log_only_what_is_grave_is_shown(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.delivery()
    properties = rig.producers[0].properties
    assert properties["log_level"] >= 6, "broken connections are told at this level"
    assert properties["log.connection.close"] is True
    broken_connection(properties)
    properties["logger"].log(logging.CRITICAL, "%s [%s] %s", "FATAL", "rdkafka#producer-1", "no")
    assert [record.getMessage() for record in caplog.records] == ["FATAL [rdkafka#producer-1] no"]


def test_a_full_queue_is_waited_for_without_the_consumer(rig: Rig) -> None:
    delivery = rig.delivery()
    rig.producers[0].room = 2
    places = [(0, offset) for offset in range(7)]
    rig.log.clear()
    deliver(delivery, *scored(*places))
    assert rig.answers() == ok(*places)
    assert rig.waited > 0, "it beats, and may give up"


def too_large_at(*offsets: int) -> Callable[[Sent], KafkaError | None]:
    """The broker refuses the results of these requests."""

    def outcome(sent: Sent) -> KafkaError | None:
        refused = {b"score-requests/0/%d" % offset for offset in offsets}
        if sent.header("request") in refused and sent.header("status") == b"ok":
            return KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
        return None

    return outcome


@pytest.mark.parametrize("offsets", [[0], [7], [3, 4], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_what_the_broker_refuses_is_found_and_answered_as_a_problem(
    rig: Rig, offsets: Sequence[int]
) -> None:
    delivery = rig.delivery()
    rig.outcome = too_large_at(*offsets)
    places = [(0, offset) for offset in range(8)]
    deliver(delivery, *scored(*places))
    statuses = dict(rig.answers())
    assert len(rig.answers()) == len(statuses) == 8
    for offset in range(8):
        expected = b"model-error" if offset in offsets else b"ok"
        assert statuses[b"score-requests/0/%d" % offset] == expected
    letters = [sent for sent in rig.committed() if sent.topic == "score-requests.dlq"]
    assert len(letters) == len(offsets)
    # In order, each offset once; and what was aborted is not counted as committed.
    ends = [each[0] for each in rig.offsets()]
    assert ends[-1] == 8
    assert delivery.counts.commits == len([line for line in rig.calls() if "commit" in line]) - (
        delivery.counts.aborts
    )
    assert delivery.counts.aborts >= len(offsets)
    assert delivery.counts.renewals == delivery.counts.aborts
    assert rig.consumer.rewound == []


def test_what_the_client_refuses_costs_no_abort(rig: Rig) -> None:
    delivery = rig.delivery()
    rig.refusal = too_large_at(1)
    deliver(delivery, *scored((0, 0), (0, 1), (0, 2)))
    assert [status for _, status in rig.answers()] == [b"ok", b"model-error", b"ok"]
    assert delivery.counts.aborts == 0


def test_a_refusal_in_mid_turn_stops_the_producing_and_is_found_too(rig: Rig) -> None:
    """The client then takes no record any more, and says nothing of the reason."""
    delivery = rig.delivery()
    refuse = too_large_at(1)
    rig.outcome = refuse
    rig.refusal = lambda sent: (
        KafkaError(KafkaError._STATE)
        if any(refuse(earlier) for earlier in rig.producers[-1].sent)
        else None
    )
    deliver(delivery, *scored((0, 0), (0, 1), (0, 2), (0, 3)))
    assert [status for _, status in rig.answers()] == [b"ok", b"model-error", b"ok", b"ok"]
    assert rig.consumer.rewound == []


def test_an_address_that_is_gone_gets_its_problem_on_the_results(rig: Rig) -> None:
    delivery = rig.delivery()
    rig.outcome = lambda sent: (
        KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART) if sent.topic == "score-replies" else None
    )
    deliver(delivery, *scored((0, 0), reply_topic="score-replies"))
    answer, letter = rig.committed()
    assert (answer.topic, answer.header("status")) == ("score-results", b"invalid-request")
    assert "score-replies" in json.loads(answer.value or b"")["detail"]
    assert letter.topic == "score-requests.dlq"


def test_what_cannot_be_mended_is_read_again(rig: Rig) -> None:
    """The results topic itself is refused: no problem can be sent there either."""
    delivery = rig.delivery()
    rig.outcome = lambda _: KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
    deliver(delivery, *scored((0, 3)))
    assert rig.answers() == []
    assert rig.consumer.rewound == [{0: 3}]


def test_without_the_right_to_answer_it_is_not_read_again_without_end(rig: Rig) -> None:
    delivery = rig.delivery()
    rig.outcome = lambda _: KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(DeliveryFailed, match="WRITE on topic score-results"):
        deliver(delivery, *scored((0, 3)))
    assert rig.answers() == []


def test_after_a_failure_among_halves_all_that_is_left_is_read_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = rig.delivery()
    rig.outcome = too_large_at(3)
    turn, answers = scored((0, 0), (0, 1), (0, 2), (0, 3))
    begun = 0
    original = FakeTransactions.begin_transaction

    def begin(producer: FakeTransactions) -> None:
        nonlocal begun
        begun += 1
        if begun == 3:  # the whole, the first half, the second half
            rig.fail("begin", fatal(KafkaError.INVALID_TXN_STATE))
        original(producer)

    monkeypatch.setattr(FakeTransactions, "begin_transaction", begin)
    deliver(delivery, turn, answers)
    assert rig.answers() == ok((0, 0), (0, 1))
    assert rig.consumer.rewound == [{0: 2}]


def test_once_a_turn_is_settled_nothing_is_in_flight(rig: Rig) -> None:
    delivery = rig.delivery()
    deliver(delivery, *scored((0, 5)))
    rig.log.clear()
    delivery.serve()
    delivery.revoked([0], 5)
    delivery.lost([0])
    assert delivery.in_flight() == delivery.abandon() == 0
    assert rig.log == []


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No commit ends until this is set."""
    event = threading.Event()
    commit = FakeTransactions.commit_transaction

    def slow(producer: FakeTransactions, timeout: float) -> None:
        event.wait(10)
        commit(producer, timeout)

    monkeypatch.setattr(FakeTransactions, "commit_transaction", slow)
    yield event
    event.set()


def test_a_commit_is_under_way_while_the_next_turn_is_scored(
    rig: Rig, held: threading.Event
) -> None:
    delivery = rig.delivery()
    delivery.deliver(*scored((0, 5), (1, 6)))
    delivery.serve()
    assert (delivery.in_flight(), delivery.counts.commits) == (2, 0)
    held.set()
    delivery.deliver(*scored((0, 6)))
    assert (delivery.in_flight(), delivery.counts.commits) == (1, 1)
    assert rig.calls().index("commit 0") < rig.calls().index("begin 0", 2)


def test_partitions_go_when_their_commit_has_ended(rig: Rig, held: threading.Event) -> None:
    delivery = rig.delivery()
    delivery.deliver(*scored((0, 5)))
    threading.Timer(0.05, held.set).start()
    delivery.revoked([0], 1.0)
    assert rig.answers() == ok((0, 5))
    assert delivery.in_flight() == 0


def test_what_was_scored_meanwhile_is_read_again_with_what_was_not_committed(rig: Rig) -> None:
    delivery = rig.delivery()
    rig.fail("commit", abortable())
    delivery.deliver(*scored((0, 5), (1, 6)))
    rewind = rig.consumer.rewind

    def disown(first: dict[int, int]) -> None:
        rewind(first)
        rig.consumer.owned -= first.keys()

    rig.consumer.rewind = disown  # type: ignore[method-assign]
    deliver(delivery, *scored((0, 6), (2, 1)))
    assert rig.consumer.rewound == [{0: 5, 1: 6}]
    assert rig.answers() == ok((2, 1))


@pytest.mark.parametrize("what", ["revoked", "lost"])
def test_what_fails_when_partitions_go_ends_the_worker_in_its_loop(rig: Rig, what: str) -> None:
    delivery = rig.delivery()
    rig.fail("commit", fatal())
    delivery.deliver(*scored((0, 5)))
    if what == "revoked":
        delivery.revoked([0], 1.0)
    else:
        delivery.lost([0])
    with pytest.raises(Fenced):
        delivery.serve()
    with pytest.raises(Fenced):
        delivery.raise_failure()
    with pytest.raises(Fenced):
        delivery.deliver(*scored((1, 5)))


def test_a_turn_that_is_given_up_half_published_is_never_committed(rig: Rig) -> None:
    delivery = rig.delivery()

    class Drained(OperationError):
        pass

    def give_up() -> None:
        raise Drained

    rig.waiting = give_up
    rig.producers[0].room = 1
    with pytest.raises(Drained):
        delivery.deliver(*scored((0, 5), (0, 6)))
    delivery.revoked([0], 1.0)
    assert "commit 0" not in rig.calls()


def test_what_went_while_a_refused_turn_was_under_way_is_not_delivered_in_halves(rig: Rig) -> None:
    delivery = rig.delivery()
    rig.outcome = too_large_at(1)
    delivery.deliver(*scored((0, 0), (0, 1), (1, 0), (1, 1)))
    rig.consumer.owned = {1}
    delivery.lost([0])
    assert rig.answers() == ok((1, 0), (1, 1))


def test_a_drain_does_not_wait_for_a_commit_that_hangs(rig: Rig, held: threading.Event) -> None:
    class Drained(OperationError):
        pass

    def give_up() -> None:
        raise Drained

    delivery = rig.delivery()
    rig.waiting = give_up
    delivery.deliver(*scored((0, 5)))
    delivery.revoked([0], 1.0)
    with pytest.raises(Drained):
        delivery.raise_failure()
