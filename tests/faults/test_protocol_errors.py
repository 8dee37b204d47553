"""Every transactional call, answered with every kind of error: what exactly-once delivery does.

On the mock cluster aborted records are visible and transactional offsets are not kept, so these
tests are about actions: tried again, begun anew, given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, cast

import pytest
from confluent_kafka import Consumer, KafkaError

from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.kafka.consumer import AssignmentListener, Fenced, RequestConsumer, Turn
from stream_scorer.kafka.exactly_once import ExactlyOnce
from stream_scorer.kafka.producer import DeliveryFailed
from stream_scorer.kafka.routes import Routes
from stream_scorer.protocol import Answer, Status
from tests.fakes import SIGNATURE, FakeTopics, request
from tests.mock_cluster import DISCONNECT, Api, MockCluster, mock_cluster
from tests.wire import RequestProducer, Send

PARTITIONS: Final = 4
OUTPUTS: Final = {"score-results": PARTITIONS, "score-requests.dlq": PARTITIONS}

AUTHORIZATION: Final = KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
FENCED: Final = KafkaError.PRODUCER_FENCED
LOADING: Final = KafkaError.COORDINATOR_LOAD_IN_PROGRESS
MOVED: Final = KafkaError.NOT_COORDINATOR
OLD_EPOCH: Final = KafkaError.INVALID_PRODUCER_EPOCH
STATE: Final = KafkaError.INVALID_TXN_STATE
STILL_ENDING: Final = KafkaError.CONCURRENT_TRANSACTIONS
TOO_LARGE: Final = KafkaError.MSG_SIZE_TOO_LARGE


class Action(Enum):
    """What an error leads to."""

    RETRIED = "the call is made again, and the turn is committed"
    BEGUN_ANEW = "the turn is not committed: a new producer, and back to the committed offsets"
    FENCED = "another process has our name: the end"


class FakeConsumer:
    """Owns every partition, and notes what is to be read again. Its group metadata is real."""

    def __init__(self, bootstrap: str) -> None:
        self.client = Consumer({"bootstrap.servers": bootstrap, "group.id": "scorers"})
        self.rewound: list[dict[int, int]] = []

    def still_owned(self, turn: Turn, partition: int) -> bool:
        return True

    def group_metadata(self) -> object:
        return self.client.consumer_group_metadata()

    def rewind(self, first: dict[int, int]) -> None:
        self.rewound.append(first)


class Rig:
    """An ``ExactlyOnce`` on a mock cluster of its own."""

    def __init__(self, cluster: MockCluster) -> None:
        self.cluster = cluster
        for topic in ("score-requests", *OUTPUTS):
            cluster.create_topic(topic, PARTITIONS)
        # Errors are what is asked for here: no line of the client's for each.
        kafka = {"bootstrap.servers": cluster.bootstrap, "log_level": 0}
        self.settings = Settings.model_validate(
            {"kafka": kafka, "worker": {"delivery": "exactly_once", "instance_id": "here"}}
        )
        self.routes = Routes(self.settings.topics, FakeTopics(OUTPUTS))
        self.waited = 0

    def delivery(self, consumer: FakeConsumer | RequestConsumer) -> ExactlyOnce:
        return ExactlyOnce(
            self.settings,
            cast("RequestConsumer", consumer),
            self.routes,
            signature=SIGNATURE,
            waiting=self._wait,
        )

    def _wait(self) -> None:
        self.waited += 1


@pytest.fixture
def rig() -> Iterator[Rig]:
    with mock_cluster() as cluster:
        yield Rig(cluster)


@pytest.fixture
def consumer(rig: Rig) -> Iterator[FakeConsumer]:
    fake = FakeConsumer(rig.cluster.bootstrap)
    yield fake
    fake.client.close()


def deliver(delivery: ExactlyOnce, *places: tuple[int, int]) -> None:
    """Deliver a turn of the requests at these partitions and offsets, all scored well."""
    requests = [request(*place) for place in places]
    turn = Turn(requests, {partition: 1 for partition, _ in places})
    delivery.deliver(turn, [Answer(item, Status.OK, "application/json", b"1") for item in requests])
    delivery.settle()


CASES: dict[Api, dict[Action, list[tuple[int, ...]]]] = {
    Api.ADD_PARTITIONS_TO_TXN: {
        Action.RETRIED: [(LOADING,), (STILL_ENDING,) * 2, (MOVED,), (DISCONNECT,)],
        Action.BEGUN_ANEW: [(KafkaError.TOPIC_AUTHORIZATION_FAILED,), (AUTHORIZATION,), (STATE,)],
        Action.FENCED: [(FENCED,), (OLD_EPOCH,)],
    },
    Api.PRODUCE: {
        Action.RETRIED: [
            (KafkaError.NOT_LEADER_FOR_PARTITION,),
            (KafkaError.REQUEST_TIMED_OUT,),
            (KafkaError.NOT_ENOUGH_REPLICAS,),
            (DISCONNECT,),
        ],
        Action.BEGUN_ANEW: [
            (KafkaError.INVALID_RECORD,),
            (KafkaError.UNKNOWN_PRODUCER_ID,),
            (KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,),  # fatal to the client
            (AUTHORIZATION,),
            (STATE,),
        ],
        Action.FENCED: [(FENCED,), (OLD_EPOCH,)],
    },
    Api.ADD_OFFSETS_TO_TXN: {
        Action.RETRIED: [(LOADING,), (STILL_ENDING,), (MOVED,), (DISCONNECT,)],
        Action.BEGUN_ANEW: [(KafkaError.GROUP_AUTHORIZATION_FAILED,), (AUTHORIZATION,), (STATE,)],
        Action.FENCED: [(FENCED,), (OLD_EPOCH,)],
    },
    Api.TXN_OFFSET_COMMIT: {
        Action.RETRIED: [
            (LOADING,),
            (MOVED,),
            (KafkaError.UNKNOWN_TOPIC_OR_PART,),
            (DISCONNECT,),
        ],
        Action.BEGUN_ANEW: [
            (KafkaError.ILLEGAL_GENERATION,),
            (KafkaError.UNKNOWN_MEMBER_ID,),
            (KafkaError.GROUP_AUTHORIZATION_FAILED,),
            (AUTHORIZATION,),
        ],
        Action.FENCED: [(FENCED,), (OLD_EPOCH,), (KafkaError.FENCED_INSTANCE_ID,)],
    },
    Api.END_TXN: {
        Action.RETRIED: [(LOADING,), (STILL_ENDING,) * 2, (DISCONNECT,), (DISCONNECT,) * 3],
        Action.BEGUN_ANEW: [(AUTHORIZATION,), (STATE,)],
        Action.FENCED: [(FENCED,), (OLD_EPOCH,)],
    },
}


def named(code: int) -> str:
    return "disconnect" if code == DISCONNECT else KafkaError(code).name()


def cases() -> Iterator[object]:
    for api, actions in CASES.items():
        for action, lists in actions.items():
            for codes in lists:
                name = f"{api.name}-{action.name}-{named(codes[0])}x{len(codes)}"
                yield pytest.param(api, action, codes, id=name)


@pytest.mark.parametrize(("api", "action", "codes"), [*cases()])
def test_an_error_of_a_call(
    rig: Rig, consumer: FakeConsumer, api: Api, action: Action, codes: tuple[int, ...]
) -> None:
    delivery = rig.delivery(consumer)
    rig.cluster.fail(api, *codes)
    turn = [(0, 3), (0, 4), (1, 7)]
    if action is Action.FENCED:
        with pytest.raises(Fenced, match=r"'here-0'.*worker\.instance_id"):
            deliver(delivery, *turn)
        assert (delivery.counts.commits, delivery.counts.renewals) == (0, 0)
        assert consumer.rewound == []
        return
    deliver(delivery, *turn)
    after = (delivery.counts.commits, delivery.counts.aborts, consumer.rewound)
    if action is Action.RETRIED:
        assert after == (1, 0, [])
    else:
        assert after == (0, 1, [{0: 3, 1: 7}])
        assert delivery.counts.renewals == 1
    deliver(delivery, *turn)
    assert delivery.counts.commits == after[0] + 1, "the next turn is not delivered"
    assert delivery.counts.aborts == after[1]


@pytest.mark.parametrize(
    "codes",
    [(LOADING,), (STILL_ENDING,) * 2, (MOVED,), (DISCONNECT,), (DISCONNECT,) * 2],
    ids=lambda codes: f"{named(codes[0])}x{len(codes)}",
)
def test_the_first_call_of_all_is_made_again(
    rig: Rig, consumer: FakeConsumer, codes: tuple[int, ...]
) -> None:
    rig.cluster.fail(Api.INIT_PRODUCER_ID, *codes)
    delivery = rig.delivery(consumer)
    deliver(delivery, (0, 0))
    assert (delivery.counts.commits, delivery.counts.aborts) == (1, 0)


ENDS: dict[int, type[OperationError]] = {
    FENCED: Fenced,
    OLD_EPOCH: Fenced,
    AUTHORIZATION: DeliveryFailed,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: DeliveryFailed,
}


@pytest.mark.parametrize("renewal", [False, True], ids=["at the start", "at a renewal"])
@pytest.mark.parametrize("code", ENDS, ids=named)
def test_without_a_producer_there_is_no_going_on(
    rig: Rig, consumer: FakeConsumer, code: int, renewal: bool
) -> None:
    def start() -> None:
        rig.cluster.fail(Api.INIT_PRODUCER_ID, code)
        rig.delivery(consumer)

    def renew() -> None:
        delivery = rig.delivery(consumer)
        rig.cluster.fail(Api.END_TXN, STATE)
        rig.cluster.fail(Api.INIT_PRODUCER_ID, code)
        deliver(delivery, (0, 0))

    attempt: Callable[[], None] = renew if renewal else start
    with pytest.raises(ENDS[code]):
        attempt()
    assert consumer.rewound == []


@pytest.mark.parametrize(
    ("codes", "action"),
    [
        ((LOADING,), Action.RETRIED),
        ((STILL_ENDING,) * 2, Action.RETRIED),
        ((DISCONNECT,), Action.RETRIED),
        ((AUTHORIZATION,), Action.BEGUN_ANEW),
        ((STATE,), Action.BEGUN_ANEW),
        ((FENCED,), Action.FENCED),
        ((OLD_EPOCH,), Action.FENCED),
    ],
    ids=lambda value: value.name if isinstance(value, Action) else f"{named(value[0])}",
)
def test_an_error_of_an_abort(
    rig: Rig, consumer: FakeConsumer, codes: tuple[int, ...], action: Action
) -> None:
    """The record is refused, so that its transaction is aborted, and that fails."""
    delivery = rig.delivery(consumer)
    rig.cluster.fail(Api.PRODUCE, TOO_LARGE)
    rig.cluster.fail(Api.END_TXN, *codes)
    if action is Action.FENCED:
        with pytest.raises(Fenced):
            deliver(delivery, (0, 3))
        assert delivery.counts.commits == 0
        return
    deliver(delivery, (0, 3))
    after = (delivery.counts.commits, delivery.counts.aborts, consumer.rewound)
    if action is Action.RETRIED:
        assert after == (1, 1, []), "a problem is committed in the answer's place"
    else:
        assert after == (0, 1, [{0: 3}])
    assert delivery.counts.renewals == 1
    deliver(delivery, (0, 4))
    assert delivery.counts.commits == after[0] + 1
    assert delivery.counts.aborts == after[1]


def test_a_refused_record_is_found_among_others_without_going_back(
    rig: Rig, consumer: FakeConsumer
) -> None:
    delivery = rig.delivery(consumer)
    rig.cluster.fail(Api.PRODUCE, TOO_LARGE)
    deliver(delivery, *((0, offset) for offset in range(8)))
    # The broker changed its mind: the halves are taken as they are.
    assert (delivery.counts.commits, delivery.counts.aborts) == (2, 1)
    assert consumer.rewound == []


def test_a_call_that_was_cut_off_leads_to_a_new_producer(rig: Rig, consumer: FakeConsumer) -> None:
    """Who sent a request and never had its answer cannot know when it arrives."""
    delivery = rig.delivery(consumer)
    rig.cluster.fail(Api.PRODUCE, *(DISCONNECT,) * 2)
    deliver(delivery, (0, 0))
    assert (delivery.counts.commits, delivery.counts.renewals) == (1, 1)


def test_after_a_failure_the_requests_are_read_again(rig: Rig) -> None:
    """With a consumer that belongs to its group, and reads from the mock cluster."""
    consumer = RequestConsumer(
        rig.settings,
        AssignmentListener(assigned=_ignore, revoked=_ignore, lost=_ignore),
    )
    delivery = rig.delivery(consumer)
    consumer.subscribe()
    producer = RequestProducer(rig.cluster.bootstrap, "score-requests")
    producer.send(*(Send(b"%d" % number, partition=1) for number in range(3)))
    rig.cluster.fail(Api.TXN_OFFSET_COMMIT, KafkaError.ILLEGAL_GENERATION)
    committed: list[bytes | None] = []
    try:
        while len(committed) < 3:
            turn = consumer.take(0.1)
            if not turn.requests:
                continue
            before = delivery.counts.commits
            answers = [Answer(item, Status.OK, "text/plain", b"1") for item in turn.requests]
            delivery.deliver(turn, answers)
            delivery.settle()
            if delivery.counts.commits > before:
                committed += [item.payload for item in turn.requests]
    finally:
        consumer.close()
    assert delivery.counts.aborts == 1
    assert committed == [b"0", b"1", b"2"]


def _ignore(_: object) -> None:
    pass
