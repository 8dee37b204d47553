"""Bytes in hand: counted as they arrive, given back whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from http_facade.budget import Budget
from http_facade.calls import NotReady, Overloaded, Reply
from stream_scorer.protocol import Header
from tests.unit.test_facade_app import GOOD, Connection, FakeClient, app, http, problem_of

SMALL = {
    "facade": {"max_pending_bytes": 100},
    "limits": {"payload_bytes": 100, "result_bytes": 100},
}


def test_a_budget_is_shared_and_given_back() -> None:
    budget = Budget(10)
    with budget.share() as one, budget.share() as other:
        one.add(6)
        other.add(4)
        with pytest.raises(Overloaded, match="10 bytes"):
            other.add(1)
        one.release()
        one.release()
        assert budget.held == 4
        other.add(6)
    assert budget.held == 0


class Sender(Connection):
    """Sends a part of a body each time it is told to."""

    def __init__(self, *parts: bytes) -> None:
        super().__init__({"Transfer-Encoding": "chunked"}, parts)
        self.go = asyncio.Semaphore(0)

    async def receive(self) -> dict[str, Any]:
        await self.go.acquire()
        return await super().receive()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_has_arrived_counts_and_what_is_announced_does_not() -> None:
    client = FakeClient()
    facade = app(client, **SMALL)
    slow = [Sender(b"x" * 30, b"y", b"") for _ in range(4)]
    tasks = [asyncio.create_task(facade(s.scope, s.receive, s.send)) for s in slow]
    for sender in slow:
        sender.go.release()
        await settle()
    # Three hold 90 of 100 bytes; the fourth came to 120.
    assert [bool(sender.sent) for sender in slow] == [False, False, False, True]
    assert (slow[3].status, slow[3].body["type"]) == (503, "urn:stream-scorer:problem:overloaded")
    assert (b"retry-after", b"1") in slow[3].sent[0]["headers"]
    for sender in slow:
        sender.go.release()
        sender.go.release()
    await asyncio.gather(*tasks)
    assert [sender.status for sender in slow] == [200, 200, 200, 503]
    assert [call.payload for call in client.calls] == [b"x" * 30 + b"y"] * 3


class Holding(FakeClient):
    """Has taken a payload, and waits for its answer."""

    def __init__(self, *, says: bool) -> None:
        super().__init__()
        self.says = says
        self.answer = asyncio.Event()

    async def call(
        self,
        payload: bytes,
        headers: Sequence[Header],
        timeout: float,
        sent: Callable[[], None] | None = None,
    ) -> Reply:
        if self.says and sent is not None:
            sent()
        await self.answer.wait()
        return GOOD


@pytest.mark.parametrize(("says", "second"), [(True, 200), (False, 503)])
async def test_what_is_sent_is_no_longer_in_hand(says: bool, second: int) -> None:
    client = Holding(says=says)
    facade = app(client, **SMALL)
    both = [Connection({"Content-Length": "100"}, [b"x" * 100, b""]) for _ in range(2)]
    tasks = [asyncio.create_task(facade(c.scope, c.receive, c.send)) for c in both]
    await settle()
    client.answer.set()
    await asyncio.gather(*tasks)
    assert [connection.status for connection in both] == [200, second]


def test_whatever_becomes_of_a_request_its_bytes_are_given_back() -> None:
    client = FakeClient(NotReady("no"))
    over_http = http(client, **SMALL)
    for status in (503, 503, 413, 415, 200, 200):
        client.outcome = GOOD if status == 200 else NotReady("no")
        result = over_http.simulate_post(
            "/api/predict",
            body=b"x" * (101 if status == 413 else 100),
            headers={"Content-Encoding": "gzip"} if status == 415 else {},
        )
        assert result.status_code == status


def test_one_payload_and_one_answer_always_fit() -> None:
    large = {"payload_bytes": 1000, "result_bytes": 2000}
    client = FakeClient(Reply(b"x" * 2000, status="ok"))
    over_http = http(client, facade={"max_pending_bytes": 1}, limits=large)
    assert over_http.simulate_post("/api/predict", body=b"x" * 1000).status_code == 200


class Reader(Connection):
    """Takes a response when it is told to."""

    def __init__(self) -> None:
        super().__init__({"Content-Length": "1"}, [b"x", b""])
        self.go = asyncio.Event()

    async def send(self, event: dict[str, Any]) -> None:
        await super().send(event)
        if event.get("body"):
            await self.go.wait()


async def test_answers_count_until_their_readers_have_them() -> None:
    client = FakeClient(Reply(b"x" * 60, status="ok"))
    facade = app(client, **SMALL)
    slow, gone, later = Reader(), Reader(), Reader()
    reading = asyncio.create_task(facade(slow.scope, slow.receive, slow.send))
    await settle()
    assert len(slow.sent) == 2
    refused = Connection({"Content-Length": "1"}, [b"x", b""])
    await facade(refused.scope, refused.receive, refused.send)
    # Not as those of whom nothing was sent: this was scored.
    assert (refused.status, refused.body["type"][-15:]) == (503, ":answer-dropped")
    assert "read slowly" in refused.body["detail"]
    slow.go.set()
    await reading
    leaving = asyncio.create_task(facade(gone.scope, gone.receive, gone.send))
    await settle()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    later.go.set()
    await facade(later.scope, later.receive, later.send)
    assert later.status == 200


def test_metrics_too_are_an_answer_that_may_not_fit() -> None:
    over_http = http(FakeClient(), **SMALL)
    result = over_http.simulate_get("/metrics")
    assert (result.status_code, result.headers["retry-after"]) == (503, "1")
    assert {"x-request-id", "server-timing"} <= result.headers.keys()
    described = http(FakeClient()).simulate_get("/api/openapi").json["paths"]["/metrics"]["get"]
    assert "503" in described["responses"]


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity, gzip, chunked", "x"])
def test_a_body_in_another_transfer_coding_is_refused(coding: str) -> None:
    client = FakeClient()
    result = http(client).simulate_post(
        "/api/predict", body=b"x", headers={"Transfer-Encoding": coding}
    )
    assert (result.status_code, client.calls) == (415, [])
    assert problem_of(result)["type"].endswith(":unsupported-content-encoding")
