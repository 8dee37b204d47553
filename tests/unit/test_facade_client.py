"""The client of the facade on the embedded broker: who gets which reply, and what is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from http_facade.calls import (
    DeliveryFailed,
    NoSuchPrediction,
    NotReady,
    Overloaded,
    Place,
    PredictionGone,
    Reply,
    ReplyLost,
    ReplyTimeout,
    RequestTooLarge,
)
from http_facade.client import RequestReplyClient, check_properties
from http_facade.replies import Replies
from http_facade.requests import Requests, request_properties
from stream_scorer.config import ConfigError, Settings
from tests.echo_worker import Asked, EchoWorker, Sent, reply
from tests.kafka_server import MakeTopics, free_ports
from tests.unit.test_facade_metrics import value

PATIENCE = 30.0


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        await asyncio.sleep(0.005)


@pytest.fixture
def settings(embedded_broker: str, topics: MakeTopics) -> Settings:
    requests, results, replies, dead = topics(4, "requests", "results", "replies", "dlq")
    return Settings.model_validate(
        {
            "kafka": {
                "bootstrap.servers": embedded_broker,
                "consumer": {"fetch.wait.max.ms": 5},
            },
            "topics": {
                "requests": requests,
                "results": results,
                "replies": replies,
                "dead_letters": dead,
                "create": False,
            },
        }
    )


def changed(settings: Settings, section: str, **values: Any) -> Settings:
    part = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: part})


def echo(
    settings: Settings, answer: Callable[[Asked], list[Sent]] = lambda asked: [reply(asked)]
) -> EchoWorker:
    return EchoWorker(settings.kafka.bootstrap, settings.topics.requests, answer)


@asynccontextmanager
async def ready_client(settings: Settings) -> AsyncIterator[RequestReplyClient]:
    client = RequestReplyClient(settings)
    client.start()
    try:
        await until(lambda: client.ready)
        yield client
    finally:
        await client.close()


def counts(client: RequestReplyClient) -> dict[str, int]:
    found = client.snapshot()["counts"]
    assert isinstance(found, dict)
    return {name: number for name, number in found.items() if number}


# ---- own answers ------------------------------------------------------------------------------


async def test_each_of_many_callers_gets_its_own_answer(settings: Settings) -> None:
    with echo(settings):
        async with ready_client(settings) as client:

            async def caller(name: int) -> None:
                for turn in range(5):
                    payload = f"{name}/{turn}".encode()
                    got = await client.call(payload, [("content-type", b"text/plain")], PATIENCE)
                    assert got == Reply(
                        payload,
                        status="ok",
                        content_type="text/plain",
                        model="echo; version=1",
                        server_timing="queue;dur=1.000, predict;dur=2.000",
                    )

            await asyncio.gather(*(caller(name) for name in range(64)))
            assert counts(client) == {"requests": 320, "replies": 320}
            assert client.snapshot()["pending"] == 0


async def test_a_request_carries_what_the_contract_wants(settings: Settings) -> None:
    forged = [
        ("accept", b"text/csv"),
        ("reply-topic", b"elsewhere"),
        ("correlation-id", b"chosen by the caller"),
        ("deadline", b"0"),
    ]
    before = time.time()
    with echo(settings) as worker:
        async with ready_client(settings) as client:
            await client.call(b"", forged, PATIENCE)
            instance = client.snapshot()["instance"]
    (asked,) = worker.asked
    assert asked.headers["accept"] == b"text/csv"
    assert asked.headers["reply-topic"].decode() == settings.topics.replies
    assert asked.headers["reply-partition"] in {b"0", b"1", b"2", b"3"}
    own = re.fullmatch(rf"{instance}\.[0-9a-f]{{32}}", asked.headers["correlation-id"].decode())
    assert own is not None
    assert before + PATIENCE <= int(asked.headers["deadline"]) / 1000 + 0.001
    assert int(asked.headers["deadline"]) / 1000 <= time.time() + PATIENCE


async def test_requests_spread_over_the_partitions(settings: Settings) -> None:
    with echo(settings) as worker:
        async with ready_client(settings) as client:
            for _ in range(60):
                await client.call(b"", [], PATIENCE)
                await asyncio.sleep(0.003)
    # By chance one of four partitions stays empty less than once in ten million runs.
    assert {asked.partition for asked in worker.asked} == {0, 1, 2, 3}


async def test_a_lone_request_does_not_wait_for_others_to_be_sent_with(settings: Settings) -> None:
    kafka = settings.kafka.model_copy(update={"producer": {"linger.ms": 20_000}})
    slow = changed(settings.model_copy(update={"kafka": kafka}), "facade", timeout=60)
    with echo(settings):
        async with ready_client(slow) as client:
            assert (await client.call(b"alone", [], 15)).body == b"alone"


async def test_two_processes_on_one_partition_skip_each_others_replies(settings: Settings) -> None:
    def to_all_partitions(asked: Asked) -> list[Sent]:
        usual = reply(asked)
        return [Sent(usual.topic, number, usual.headers, usual.body) for number in range(4)]

    with echo(settings, to_all_partitions):
        async with ready_client(settings) as one, ready_client(settings) as other:
            await one.call(b"for one", [], PATIENCE)
            await until(lambda: counts(other).get("foreign") == 1)
            assert (await other.call(b"for the other", [], PATIENCE)).body == b"for the other"
            assert "orphan" not in counts(other)


async def test_the_model_and_its_types_are_those_of_the_last_answer(settings: Settings) -> None:
    told = iter(
        [
            {"model": b"first; version=1", "accepts": b"text/csv"},
            {"model": b"second; version=2", "accepts": b"a/b, c/d"},
            {"model": b"second; version=2"},  # a worker of an older version
        ]
    )
    with echo(settings, lambda asked: [reply(asked, **next(told))]):
        async with ready_client(settings) as client:
            assert (client.model, client.accepts) == (None, None)
            assert (await client.call(b"", [], PATIENCE)).accepts == "text/csv"
            assert (client.model, client.accepts) == ("first; version=1", "text/csv")
            for _ in range(2):
                await client.call(b"", [], PATIENCE)
                assert (client.model, client.accepts) == ("second; version=2", "a/b, c/d")


# ---- replies that answer nobody ---------------------------------------------------------------


async def test_a_late_reply_is_dropped_and_counted(settings: Settings) -> None:
    with echo(settings, lambda _asked: []) as worker:
        async with ready_client(settings) as client:
            with pytest.raises(ReplyTimeout, match="unknown") as caught:
                await client.call(b"slow", [], 0.05)
            await until(lambda: worker.asked)
            place = caught.value.place
            assert place.correlation_id.encode() == worker.asked[0].headers["correlation-id"]
            worker.send([reply(worker.asked[0])])
            await until(lambda: "late" in counts(client))
            assert counts(client) == {"requests": 1, "timeouts": 1, "late": 1}
            assert await _found(client, place) == _reply_of(worker.asked[0])
            assert client.snapshot()["pending"] == 0
            assert client.model is None


async def test_the_first_of_two_replies_wins(settings: Settings) -> None:
    def twice(asked: Asked) -> list[Sent]:
        return [reply(asked), reply(asked, status=b"model-error", model=b"another")]

    with echo(settings, twice):
        async with ready_client(settings) as client:
            assert (await client.call(b"", [], PATIENCE)).status == "ok"
            await until(lambda: "duplicate" in counts(client))
            assert counts(client) == {"requests": 1, "replies": 1, "duplicate": 1}
            assert client.model == "echo; version=1"


async def test_spoofed_and_nameless_replies_reach_nobody(settings: Settings) -> None:
    def spoofed(asked: Asked) -> list[Sent]:
        instance = asked.headers["correlation-id"].partition(b".")[0]
        guess = reply(asked, correlation_id=instance + b"." + b"0" * 32, model=b"forged")
        stranger = reply(asked, correlation_id=b"someone-else." + b"0" * 32)
        nameless = Sent(guess.topic, guess.partition, [], b"no headers at all")
        return [guess, stranger, nameless, reply(asked)]

    with echo(settings, spoofed):
        async with ready_client(settings) as client:
            assert (await client.call(b"true", [], PATIENCE)).body == b"true"
            assert counts(client) == {"requests": 1, "replies": 1, "orphan": 1, "foreign": 2}
            assert client.model == "echo; version=1"


# ---- answers that nobody waits for ------------------------------------------------------------


def _reply_of(asked: Asked) -> Reply:
    sent = reply(asked)
    headers = dict(sent.headers)
    texts = [headers[name] for name in ("status", "content-type", "model", "server-timing")]
    return Reply(sent.body, *(text.decode() for text in texts if isinstance(text, bytes)))


async def test_a_request_that_nobody_waits_for_is_stored_and_found_later(
    settings: Settings,
) -> None:
    before = time.time()
    async with ready_client(settings) as client:
        place = await client.submit(b"later", [("content-type", b"a/b")], 3600, 0, PATIENCE)
        assert isinstance(place, Place)
        assert 3600 <= place.until / 1000 - before + 0.001 < 3600 + PATIENCE
        assert client.snapshot()["pending"] == 0
        # Nothing is there yet, and nothing was read.
        assert await client.find(place) == place
    # It is answered while no process of the facade runs, and found by another.
    with echo(settings, lambda asked: [reply(asked), reply(asked, status=b"duplicate")]) as worker:
        await until(lambda: worker.asked)
    assert worker.asked[0].headers["deadline"] == str(place.until).encode()
    async with ready_client(settings) as other:
        found = await _found(other, place)
        assert (found.status, found.body, found.content_type) == ("ok", b"later", "a/b")
        assert found == _reply_of(worker.asked[0])


async def _found(client: RequestReplyClient, place: Place) -> Reply:
    while True:
        found = await client.find(place)
        if isinstance(found, Reply):
            return found
        assert found.offset >= place.offset
        assert found._replace(offset=place.offset) == place
        place = found


async def test_who_waits_a_while_is_answered_or_told_where(settings: Settings) -> None:
    with echo(settings, lambda asked: [] if asked.payload == b"slow" else [reply(asked)]) as worker:
        async with ready_client(settings) as client:
            found = await client.submit(b"quick", [], 3600, PATIENCE, PATIENCE)
            assert isinstance(found, Reply)
            assert found.body == b"quick"
            place = await client.submit(b"slow", [], 3600, 0.05, PATIENCE)
            assert isinstance(place, Place)
            await until(lambda: len(worker.asked) == 2)
            worker.send([reply(worker.asked[1])])
            await until(lambda: "deferred" in counts(client))
            assert counts(client) == {"requests": 2, "replies": 1, "deferred": 1}
            assert (await _found(client, place)).body == b"slow"


async def test_a_search_reads_a_part_and_says_where_to_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("http_facade.reply_log._MOST_BYTES", 300_000)
    async with ready_client(settings) as client:
        place = await client.submit(b"wanted", [], 3600, 0, PATIENCE)
        assert isinstance(place, Place)
        with echo(settings, lambda _asked: []) as worker:
            await until(lambda: worker.asked)
        wanted = reply(worker.asked[0])
        others = [
            Sent(wanted.topic, wanted.partition, [("correlation-id", b"other")], b"x" * 100_000)
            for _ in range(10)
        ]
        worker.send([*others, wanted])
        asked = []
        while isinstance(place, Place):
            asked.append(place.offset)
            place = await client.find(place)
        assert place.body == b"wanted"
        # From further on each time, unless a search of 1 s found nothing at all.
        assert asked == sorted(asked)
        assert 2 <= len(set(asked)) <= 10


async def test_a_prediction_that_never_was_or_is_no_more(settings: Settings) -> None:
    async with ready_client(settings) as client:
        place = await client.submit(b"", [], 3600, 0, PATIENCE)
        assert isinstance(place, Place)
        with pytest.raises(NoSuchPrediction):
            await client.find(place._replace(partition=4))
        # What is past the end may be behind a transaction that is open.
        further = place._replace(offset=place.offset + 1)
        assert await client.find(further) == further
        # Within facade.timeout of the deadline a worker may still say that it has passed.
        just = int(time.time() * 1000)
        assert isinstance(await client.find(place._replace(until=just)), Place)
        with pytest.raises(PredictionGone):
            await _found(client, place._replace(until=just - 11_000))


async def test_searches_are_bounded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("http_facade.reply_log._WAITING", 0)
    async with ready_client(settings) as client:
        place = await client.submit(b"", [], 3600, 0, PATIENCE)
        assert isinstance(place, Place)
        found = await asyncio.gather(
            *(client.find(place) for _ in range(5)), return_exceptions=True
        )
        assert found[:4] == [place] * 4
        assert isinstance(found[4], Overloaded)
        assert await client.find(place) == place


async def test_a_request_that_cannot_be_stored_is_refused(settings: Settings) -> None:
    limits = settings.limits.model_copy(update={"payload_bytes": 100})
    small = settings.model_copy(update={"limits": limits})
    async with ready_client(small) as client:
        with pytest.raises(RequestTooLarge):
            await client.submit(b"x" * 3_000_000, [], 3600, 0, PATIENCE)
        assert client.snapshot()["pending"] == 0


class UnreadableMessage:
    """A record with a header name that is not UTF-8, which crashes the client if asked twice."""

    def __init__(self) -> None:
        self.calls = 0

    def error(self) -> None:
        return None

    def offset(self) -> int:
        return 41

    def headers(self) -> None:
        self.calls += 1
        raise SystemError("returned a result with an exception set")


def test_a_header_that_cannot_be_read_is_skipped_and_never_asked_for_again() -> None:
    arrived: list[tuple[list[tuple[bytes, Reply]], int, int]] = []
    replies = Replies(
        Settings(), (b"me.",), lambda _: None, lambda *got: arrived.append(got), lambda: None
    )
    message: Any = UnreadableMessage()
    replies._take([message])
    assert arrived == [([], 0, 1)]
    assert message.calls == 1
    assert replies.next_offset == 42


class Marks:
    """A consumer that knows only where the log begins and ends, and what it is assigned."""

    def __init__(self) -> None:
        self.low_and_high = (0, 0)
        self.assigned: list[tuple[str, int, int]] = []

    def get_watermark_offsets(
        self, place: TopicPartition, timeout: float, cached: bool
    ) -> tuple[int, int]:
        assert not cached
        return self.low_and_high

    def assign(self, places: list[TopicPartition]) -> None:
        self.assigned += [(place.topic, place.partition, place.offset) for place in places]


@pytest.mark.parametrize(
    ("next_offset", "low_and_high", "assigned", "lost"),
    [
        (None, (0, 0), 0, 0),
        (None, (3, 7), 7, 0),  # a number, as "the end" may be found only after the first reply
        (5, (3, 9), 5, 0),  # after a break: what came meanwhile is read
        (9, (3, 9), 9, 0),
        (3, (3, 9), 3, 0),
        (2, (3, 9), 9, 1),  # deleted before it was read
        (10, (3, 9), 9, 1),  # another log under the same name
    ],
)
def test_replies_are_read_from_where_none_is_missed(
    next_offset: int | None, low_and_high: tuple[int, int], assigned: int, lost: int
) -> None:
    losses: list[None] = []
    replies = Replies(
        Settings(), (b"me.",), lambda _: None, lambda *_: None, lambda: losses.append(None)
    )
    marks = Marks()
    marks.low_and_high = low_and_high
    replies._consumer.close()
    replies._consumer = marks  # type: ignore[assignment]  # as much of one as is asked
    replies._choose(4)
    replies.next_offset = next_offset
    replies._assign()
    assert marks.assigned == [("score-replies", replies.partition, assigned)]
    assert replies.next_offset == assigned
    assert len(losses) == lost


def test_each_process_has_a_partition_that_exists() -> None:
    chosen = set()
    for number in range(100):
        replies = Replies(
            Settings(), (f"{number}.".encode(),), lambda _: None, lambda *_: None, lambda: None
        )
        replies._choose(4)
        chosen.add(replies.partition)
        replies._consumer.close()
    assert chosen == {0, 1, 2, 3}


# ---- no answer --------------------------------------------------------------------------------


async def test_a_caller_that_goes_away_leaves_nothing_behind(settings: Settings) -> None:
    with echo(settings, lambda _asked: []) as worker:
        async with ready_client(settings) as client:
            call = asyncio.create_task(client.call(b"", [], PATIENCE))
            await until(lambda: worker.asked)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert client.snapshot()["pending"] == 0
            worker.send([reply(worker.asked[0])])
            await until(lambda: "late" in counts(client))


async def test_above_the_bound_nothing_is_sent(settings: Settings) -> None:
    with echo(settings, lambda _asked: []) as worker:
        async with ready_client(changed(settings, "facade", max_pending=2)) as client:
            waiting = [asyncio.create_task(client.call(b"", [], PATIENCE)) for _ in range(2)]
            await until(lambda: client.snapshot()["pending"] == 2)
            with pytest.raises(Overloaded):
                await client.call(b"", [], PATIENCE)
            await until(lambda: len(worker.asked) == 2)
            worker.send([reply(asked) for asked in worker.asked])
            await asyncio.gather(*waiting)
            assert counts(client) == {"requests": 2, "replies": 2}


async def test_a_full_queue_is_an_overload(settings: Settings) -> None:
    small = settings.model_copy(
        update={
            "kafka": settings.kafka.model_copy(
                update={"producer": {"queue.buffering.max.kbytes": 1}}
            )
        }
    )
    async with ready_client(small) as client:
        with pytest.raises(Overloaded, match="queue"):
            await client.call(b"x" * 2000, [], PATIENCE)
        assert client.snapshot()["pending"] == 0


async def test_a_payload_is_handed_over_once_it_is_queued(settings: Settings) -> None:
    told: list[int] = []
    with echo(settings, lambda _asked: []):
        async with ready_client(settings) as client:
            call = asyncio.create_task(
                client.call(b"x", [], PATIENCE, lambda: told.append(len(client._pending)))
            )
            await until(lambda: told)
            assert not call.done()
            await client.close()
            with pytest.raises(ReplyLost):
                await call
    assert told == [1]


async def test_whether_a_request_is_stored_is_not_waited_for_without_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready_client(settings) as client:
        monkeypatch.setattr(client._requests, "send", lambda *_, **__: None)
        with pytest.raises(DeliveryFailed, match="unknown"):
            await client.submit(b"", [], 3600, 0, 0.05)
        assert client.snapshot()["pending"] == 0


async def test_a_stored_request_keeps_its_place_when_replies_are_lost(settings: Settings) -> None:
    with echo(settings, lambda _asked: []) as worker:
        async with ready_client(settings) as client:
            waiting = asyncio.create_task(client.submit(b"", [], 3600, PATIENCE, PATIENCE))
            await until(lambda: worker.asked)
            await until(lambda: not client._requests._awaited)
            await asyncio.sleep(0.2)  # until the loop is told of its delivery
            client._lose_pending()
            assert isinstance(await waiting, Place)


async def test_without_a_broker_nothing_is_looked_for() -> None:
    (port,) = free_ports(1)
    nowhere = Settings.model_validate({"kafka": {"bootstrap.servers": f"127.0.0.1:{port}"}})
    client = RequestReplyClient(nowhere)
    client.start()
    try:
        with pytest.raises(NotReady):
            await client.find(Place("0" * 16 + "." + "0" * 32, 0, 0, 0))
    finally:
        await client.close()


class QuickProducer:
    """Reports a delivery before ``produce`` returns, or refuses the record."""

    def __init__(self, *, full: bool) -> None:
        self._full = full

    def produce(self, *_: object, on_delivery: Callable[..., None], **__: object) -> None:
        if self._full:
            raise BufferError
        on_delivery(None, None)


@pytest.mark.parametrize("full", [False, True])
def test_nobody_is_left_waiting_for_a_report_that_has_come(full: bool) -> None:
    told: list[None] = []
    requests = Requests(Settings(), lambda *_: None, lambda: None)
    requests._producer = cast("Any", QuickProducer(full=full))
    with pytest.raises(BufferError) if full else contextlib.nullcontext():
        requests.send(b"me.1", b"", [], at_once=True, stored=lambda: told.append(None))
    assert (requests._awaited, len(told)) == (set(), 0 if full else 1)


async def test_a_client_that_cannot_be_made_anew_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (port,) = free_ports(1)
    nowhere = Settings.model_validate({"kafka": {"bootstrap.servers": f"127.0.0.1:{port}"}})
    monkeypatch.setattr("http_facade.replies._ATTEMPT", 0.1)
    monkeypatch.setattr("http_facade.replies._PAUSE", 0.01)
    replies = Replies(nowhere, (b"me.",), lambda _: None, lambda *_: None, lambda: None)
    tried: list[None] = []

    def failing() -> Consumer:
        tried.append(None)
        raise KafkaException(KafkaError(KafkaError._FAIL))

    monkeypatch.setattr(replies, "_new_consumer", failing)
    replies.start()
    await until(lambda: len(tried) >= 2)
    assert replies.thread.is_alive()
    replies.stop()
    await asyncio.to_thread(replies.thread.join, PATIENCE)


async def test_a_payload_over_the_clients_limit_is_told_apart(settings: Settings) -> None:
    async with ready_client(settings) as client:
        with pytest.raises(RequestTooLarge):
            await client.call(b"x" * 2_000_000, [], PATIENCE)
        assert client.snapshot()["pending"] == 0


async def test_a_request_that_cannot_be_delivered_is_told_with_its_reason() -> None:
    (port,) = free_ports(1)
    nowhere = Settings.model_validate(
        {"kafka": {"bootstrap.servers": f"127.0.0.1:{port}"}, "facade": {"timeout": 0.2}}
    )
    failed: list[tuple[bytes, KafkaError]] = []
    doubts: list[None] = []
    requests = Requests(nowhere, lambda *got: failed.append(got), lambda: doubts.append(None))
    requests.start()
    requests.send(b"me.1", b"payload", [], at_once=True)
    await until(lambda: failed)
    requests.stop()
    requests.thread.join(PATIENCE)
    ((correlation_id, error),) = failed
    assert (correlation_id, error.name()) == (b"me.1", "_MSG_TIMED_OUT")
    assert doubts
    assert not requests.thread.is_alive()


async def test_without_a_broker_it_is_not_ready_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    client = RequestReplyClient(Settings.model_validate({"kafka": {"bootstrap.servers": address}}))
    client.start()
    try:
        await until(lambda: client.snapshot()["trouble"])
        assert not client.ready
        assert client.alive
        assert address in str(client.snapshot()["trouble"])
        with pytest.raises(NotReady):
            await client.call(b"", [], PATIENCE)
        assert counts(client) == {}
    finally:
        await client.close()
    told = [record for record in caplog.records if record.name == "http_facade.replies"]
    assert [address in record.getMessage() for record in told] == [True]


async def test_closing_fails_what_still_waits(settings: Settings) -> None:
    with echo(settings, lambda _asked: []) as worker:
        async with ready_client(settings) as client:
            call = asyncio.create_task(client.call(b"", [], PATIENCE))
            await until(lambda: worker.asked)
            await client.close()
            # It was sent, and may be scored.
            with pytest.raises(ReplyLost, match=r"stopping.*unknown"):
                await call
            assert not client.alive
            assert not client.ready
            with pytest.raises(NotReady):
                await client.call(b"", [], PATIENCE)


async def test_it_refuses_to_work_in_a_forked_child(settings: Settings) -> None:
    async with ready_client(settings) as client:
        client._pid = 1  # what a child would see: the number of another process
        with pytest.raises(RuntimeError, match="fork"):
            await client.call(b"", [], PATIENCE)


# ---- metrics ----------------------------------------------------------------------------------


async def test_the_gauges_show_who_waits_and_whether_it_is_ready(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("http_facade.client._LOOK_EVERY", 0.01)
    client = RequestReplyClient(settings)
    assert value(client.metrics.exposition(), "ready") == 0
    client.start()
    try:
        await until(lambda: value(client.metrics.exposition(), "ready") == 1)
        call = asyncio.create_task(client.call(b"", [], PATIENCE))
        await until(lambda: value(client.metrics.exposition(), "pending") == 1)
        call.cancel()
        await until(lambda: value(client.metrics.exposition(), "pending") == 0)
    finally:
        await client.close()


# ---- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["kafka", "consumer", "producer"])
def test_properties_that_librdkafka_refuses_are_told_at_once(section: str) -> None:
    wrong = {"no.such.property": "1"}
    kafka = wrong if section == "kafka" else {section: wrong}
    with pytest.raises(ConfigError, match=r"no\.such\.property.* @ kafka"):
        check_properties(Settings.model_validate({"kafka": kafka}))


async def test_a_client_with_such_a_property_does_not_start() -> None:
    settings = Settings.model_validate({"kafka": {"no.such.property": "1"}})
    client = RequestReplyClient(settings)
    with pytest.raises(ConfigError):
        client.start()


@pytest.mark.parametrize(
    ("pending", "own", "kbytes"),
    [(200_000_000, {}, 195_312), (1, {}, 2176), (1, {"queue.buffering.max.kbytes": 77}, 77)],
)
def test_the_producer_queues_as_much_as_may_be_pending(
    pending: int, own: dict[str, Any], kbytes: int
) -> None:
    settings = Settings.model_validate(
        {"facade": {"max_pending_bytes": pending}, "kafka": {"producer": own}}
    )
    assert request_properties(settings)["queue.buffering.max.kbytes"] == kbytes


def test_good_properties_pass() -> None:
    check_properties(Settings.model_validate({"kafka": {"client.id": "facade"}}))
