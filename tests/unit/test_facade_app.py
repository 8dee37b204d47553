"""The HTTP side with a client that is a fake: what reaches it, and what becomes of its replies."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from falcon import testing

from http_facade import problems
from http_facade.app import Facade, create_app
from http_facade.body import BodyIncomplete, EncodingNotSupported, PayloadTooLarge
from http_facade.calls import (
    AnswerDropped,
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
    Unauthorized,
    UnknownStatus,
)
from http_facade.metrics import Metrics
from stream_scorer.config import Settings
from stream_scorer.protocol import Header, Status, problem_body

PLACE = Place("0123456789abcdef." + "0f" * 16, partition=3, offset=17, until=1_800_000_000_000)
GOOD = Reply(b"[5.37]", status="ok", content_type="application/json")


@dataclass
class Call:
    payload: bytes
    headers: dict[str, bytes]
    timeout: float


@dataclass
class FakeClient:
    """Answers each call with ``outcome``: a reply, or an exception to raise."""

    outcome: Reply | Exception = GOOD
    ready: bool = True
    alive: bool = True
    model: str | None = None
    accepts: str | None = None
    calls: list[Call] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    place: Place | Exception | None = None
    """Where the reply to a request will be that nobody waits for; ``None``: it is there."""
    wait: float | None = None
    asked: list[Place] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    def start(self) -> None:
        self.events.append("start")

    async def close(self) -> None:
        self.events.append("close")

    async def call(
        self,
        payload: bytes,
        headers: Sequence[Header],
        timeout: float,
        sent: Callable[[], None] | None = None,
    ) -> Reply:
        self.calls.append(Call(payload, dict(headers), timeout))
        assert len({name for name, _ in headers}) == len(headers)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def submit(
        self,
        payload: bytes,
        headers: Sequence[Header],
        lifetime: float,
        wait: float,
        timeout: float,
        sent: Callable[[], None] | None = None,
    ) -> Reply | Place:
        self.wait = wait
        reply = await self.call(payload, headers, lifetime, sent)
        return self._found(reply)

    async def find(self, place: Place) -> Reply | Place:
        self.asked.append(place)
        assert isinstance(self.outcome, Reply)
        return self._found(self.outcome)

    def _found(self, reply: Reply) -> Reply | Place:
        if isinstance(self.place, Exception):
            raise self.place
        return reply if self.place is None else self.place

    def snapshot(self) -> Mapping[str, object]:
        return {"pending": 0}


def settings(**sections: dict[str, Any]) -> Settings:
    return Settings.model_validate(sections)


def http(client: FakeClient, **sections: dict[str, Any]) -> testing.TestClient:
    return testing.TestClient(create_app(client, settings(**sections)))


def predict(client: FakeClient, body: bytes = b"{}", **options: Any) -> testing.Result:
    return http(client).simulate_post("/api/predict", body=body, **options)


def problem_of(result: testing.Result) -> dict[str, Any]:
    assert result.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = result.json
    assert found["status"] == result.status_code
    assert found["type"].startswith("urn:stream-scorer:problem:")
    assert {"title", "detail"} <= found.keys()
    return found


# ---- the worker's answers ---------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_each_status_of_the_contract_has_its_http_status_and_keeps_its_body(status: Status) -> None:
    body = b"\x00 any bytes"
    client = FakeClient(Reply(body, status=status.value, content_type="application/x"))
    result = predict(client)
    assert (result.status_code, result.content) == (status.http, body)
    assert result.headers["content-type"] == "application/x"


def test_the_answers_headers_become_http_headers() -> None:
    reply = Reply(
        b"", "ok", "image/png", model="models:/wine; version=3", server_timing="queue;dur=1.000"
    )
    headers = predict(FakeClient(reply)).headers
    assert headers["x-model"] == "models:/wine; version=3"
    assert re.fullmatch(r"queue;dur=1\.000, total;dur=\d+\.\d{3}", headers["server-timing"])


def test_an_answer_without_a_type_is_bytes() -> None:
    headers = predict(FakeClient(Reply(b"", status="ok"))).headers
    assert headers["content-type"] == "application/octet-stream"
    assert "x-model" not in headers


@pytest.mark.parametrize("status", ["ok ", "OK", "from-a-newer-version", "", None])
def test_a_status_that_is_not_known_is_a_problem(status: str | None) -> None:
    result = predict(FakeClient(Reply(b"result", status=status)))
    assert result.status_code == 500
    assert problem_of(result)["type"].endswith(":unknown-status")


def test_a_reply_cannot_write_header_lines() -> None:
    evil = "a\r\nSet-Cookie: b=c\x00\x7f\u20ac"
    headers = predict(FakeClient(Reply(b"", "ok", evil, evil, evil))).headers
    assert "set-cookie" not in headers
    assert headers["x-model"] == "a??Set-Cookie: b=c???"
    assert headers["content-type"] == "a??Set-Cookie: b=c???"
    assert headers["server-timing"].startswith("a??Set-Cookie: b=c???, total;dur=")


def test_a_reply_cannot_make_header_lines_of_any_length() -> None:
    headers = predict(FakeClient(Reply(b"", "ok", model="m" * 100_000))).headers
    assert headers["x-model"] == "m" * 1024


# ---- what reaches the worker ------------------------------------------------------------------


def test_the_payload_and_only_allow_listed_headers_reach_kafka() -> None:
    client = FakeClient()
    sent = {
        "Content-Type": "application/json; charset=utf-8",
        "Accept": "text/csv",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=1",
        "X-Request-Id": "mine",
        "Authorization": "Bearer secret",
        "Cookie": "a=b",
        "X-Custom": "no",
        "correlation-id": "forged",
        "reply-topic": "elsewhere",
        "deadline": "1",
        "status": "ok",
    }
    predict(client, b"\xff\x00payload", headers=sent)
    (call,) = client.calls
    assert call.payload == b"\xff\x00payload"
    assert call.headers == {
        "content-type": b"application/json; charset=utf-8",
        "accept": b"text/csv",
        "traceparent": sent["traceparent"].encode(),
        "tracestate": b"a=1",
        "x-request-id": b"mine",
    }


def test_what_is_not_sent_is_not_invented() -> None:
    client = FakeClient()
    predict(client, b"", headers={})
    (call,) = client.calls
    assert call.payload == b""
    assert set(call.headers) == {"x-request-id"}


def test_a_header_that_is_not_ascii_arrives_as_utf8() -> None:
    client = FakeClient()
    predict(client, headers={"Accept": "text/\xe9"})
    assert client.calls[0].headers["accept"] == "text/\xe9".encode()


def test_the_timeout_is_that_of_the_settings() -> None:
    client = FakeClient()
    http(client, facade={"timeout": 7}).simulate_post("/api/predict", body=b"{}")
    assert 0 < client.calls[0].timeout <= 7


# ---- problems ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Unauthorized("why"), 401, "unauthorized"),
        (NotReady("why"), 503, "not-ready"),
        (Overloaded("why"), 503, "overloaded"),
        (AnswerDropped("why"), 503, "answer-dropped"),
        (DeliveryFailed("why"), 503, "delivery-failed"),
        (ReplyLost("why"), 503, "reply-lost"),
        (RequestTooLarge("why"), 413, "payload-too-large"),
        (ReplyTimeout("why", PLACE), 504, "timeout"),
        (PayloadTooLarge("why"), 413, "payload-too-large"),
        (EncodingNotSupported("why"), 415, "unsupported-content-encoding"),
        (BodyIncomplete("why"), 408, "request-timeout"),
        (NoSuchPrediction("why"), 404, "not-found"),
        (PredictionGone("why"), 410, "gone"),
    ],
)
def test_each_failure_is_a_problem(error: Exception, status: int, kind: str) -> None:
    result = predict(FakeClient(error))
    found = problem_of(result)
    assert (result.status_code, found["type"]) == (status, f"urn:stream-scorer:problem:{kind}")
    assert found["detail"] == "why"


def test_every_problem_of_the_table_is_among_the_tests() -> None:
    (mark,) = test_each_failure_is_a_problem.pytestmark  # type: ignore[attr-defined]  # pytest's
    tested = {type(error) for error, _, _ in mark.args[1]}
    assert set(problems.PROBLEMS) - tested == {UnknownStatus, Exception}


@pytest.mark.parametrize(
    "error", [NotReady(""), Overloaded(""), AnswerDropped(""), DeliveryFailed(""), ReplyLost("")]
)
def test_where_trying_again_helps_it_is_said_when(error: Exception) -> None:
    assert predict(FakeClient(error)).headers["retry-after"] == "1"


def test_a_timeout_tells_what_a_late_answer_can_be_found_by() -> None:
    result = predict(FakeClient(ReplyTimeout("unknown", PLACE)))
    assert problem_of(result)["correlation_id"] == PLACE.correlation_id
    assert result.headers["location"] == PLACE.uri


def test_a_problem_has_the_body_that_it_has_on_a_topic() -> None:
    on_topic = problem_body(Status.PAYLOAD_TOO_LARGE, "why", correlation_id=b"me")
    here = problems.body(problems.Problem.of(Status.PAYLOAD_TOO_LARGE), "why", "me")
    assert here == on_topic


def test_an_error_of_ours_tells_the_caller_nothing_and_the_log_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = predict(FakeClient(ZeroDivisionError("a secret")))
    assert result.status_code == 500
    assert problem_of(result)["type"].endswith(":internal-error")
    assert "secret" not in result.text
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


def test_no_such_path() -> None:
    result = http(FakeClient()).simulate_get("/no/such")
    assert result.status_code == 404
    assert problem_of(result)["type"].endswith(":not-found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_no_such_method(method: str) -> None:
    result = http(FakeClient()).simulate_request(method, "/api/predict")
    assert result.status_code == 405
    assert problem_of(result)["type"].endswith(":method-not-allowed")
    assert "POST" in result.headers["allow"]


# ---- what a caller prefers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefer", "timeout", "applied"),
    [
        ("wait=2", 2, "wait=2"),
        ("wait=100", 10, None),
        ("wait=0", 10, None),
        ("return=minimal", 10, None),
    ],
)
def test_a_caller_may_wait_less(prefer: str, timeout: float, applied: str | None) -> None:
    client = FakeClient()
    result = predict(client, headers={"Prefer": prefer})
    assert timeout - 1 < client.calls[0].timeout <= timeout
    assert result.headers.get("preference-applied") == applied


@pytest.mark.parametrize(
    ("prefer", "wait", "applied"),
    [
        ("respond-async", 0, "respond-async"),
        ("respond-async, wait=3", 3, "respond-async, wait=3"),
        ("wait=30, respond-async", 10, "respond-async"),
    ],
)
def test_a_caller_may_come_back_later(prefer: str, wait: float, applied: str) -> None:
    client = FakeClient(place=PLACE)
    result = http(client, facade={"async_timeout": 60}).simulate_post(
        "/api/predict", body=b"body", headers={"Prefer": prefer, "Content-Type": "a/b"}
    )
    assert result.status_code == 202
    assert result.headers["location"] == PLACE.uri
    assert result.headers["preference-applied"] == applied
    assert result.headers["retry-after"] == "1"
    assert result.json == {"status": "pending", "location": PLACE.uri}
    (call,) = client.calls
    assert (call.payload, call.timeout) == (b"body", 60)
    assert client.wait == pytest.approx(wait, abs=1)
    assert call.headers["content-type"] == b"a/b"
    assert "prefer" not in call.headers


def test_an_answer_that_comes_while_the_caller_waits_is_given_at_once() -> None:
    result = predict(FakeClient(), headers={"Prefer": "respond-async, wait=3"})
    assert (result.status_code, result.content) == (200, GOOD.body)


def test_an_answer_is_asked_for_later_where_it_was_said_to_be() -> None:
    client = FakeClient(Reply(b"?", "model-error", "a/b", model="m"))
    result = http(client).simulate_get(PLACE.uri)
    assert client.asked == [PLACE]
    assert (result.status_code, result.content) == (500, b"?")
    assert (result.headers["content-type"], result.headers["x-model"]) == ("a/b", "m")


def test_an_answer_that_is_not_there_yet_says_where_to_look_next() -> None:
    further = PLACE._replace(offset=99)
    result = http(FakeClient(place=further)).simulate_get(PLACE.uri)
    assert (result.status_code, result.headers["location"]) == (202, further.uri)
    assert "offset=99" in further.uri


@pytest.mark.parametrize(
    "uri",
    [
        PLACE.uri.partition("?")[0],
        PLACE.uri.replace("0f0f", "0F0F"),
        PLACE.uri.replace("offset=17", "offset=-1"),
        PLACE.uri.replace("offset=17", "offset=x"),
        PLACE.uri.replace("offset=17", "offset=" + "9" * 19),
        PLACE.uri.replace("partition=3", "partition=2147483648"),
        PLACE.uri.replace("until=", "until=%D9%A3"),
        "/api/predictions/me?partition=3&offset=17&until=1",
    ],
)
def test_a_place_that_cannot_be_is_not_looked_for(uri: str) -> None:
    client = FakeClient()
    result = http(client).simulate_get(uri)
    assert (result.status_code, client.asked) == (404, [])
    assert problem_of(result)["type"].endswith(":not-found")


# ---- the body ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "status"), [(99, 200), (100, 200), (101, 413)])
def test_the_size_limit(size: int, status: int) -> None:
    client = FakeClient()
    result = http(client, limits={"payload_bytes": 100}).simulate_post(
        "/api/predict", body=b"x" * size
    )
    assert result.status_code == status
    assert len(client.calls) == (status == 200)


@pytest.mark.parametrize("encoding", ["gzip", "br, gzip", "Deflate"])
def test_a_compressed_body_is_refused(encoding: str) -> None:
    client = FakeClient()
    result = predict(client, headers={"Content-Encoding": encoding})
    assert result.status_code == 415
    assert problem_of(result)["type"].endswith(":unsupported-content-encoding")
    assert result.headers["accept-encoding"] == "identity"
    assert client.calls == []


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_body_as_it_is_is_taken(encoding: str) -> None:
    assert predict(FakeClient(), headers={"Content-Encoding": encoding}).status_code == 200


class Connection:
    """One request over ASGI, its body in parts; ``None`` is a client that goes away."""

    def __init__(self, headers: Mapping[str, str], parts: Sequence[bytes | None]) -> None:
        self.scope = testing.create_scope(
            path="/api/predict", method="POST", headers=dict(headers), include_server=True
        )
        self.parts = list(parts)
        self.events: list[str] = []
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        self.events.append("receive")
        if not self.parts:
            await asyncio.Event().wait()  # the client is there and sends nothing
        part = self.parts.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": part != b""}

    async def send(self, event: dict[str, Any]) -> None:
        self.sent.append(event)
        self.events.append("send")

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = orjson.loads(self.sent[1]["body"])
        return body


def app(client: FakeClient, **sections: dict[str, Any]) -> Facade:
    return create_app(client, settings(**sections))


async def test_a_chunked_body_arrives_whole() -> None:
    client = FakeClient()
    connection = Connection({"Transfer-Encoding": "chunked"}, [b"one,", b"two,", b"three", b""])
    await app(client)(connection.scope, connection.receive, connection.send)
    assert connection.status == 200
    assert client.calls[0].payload == b"one,two,three"


async def test_a_chunked_body_is_counted_while_it_is_read() -> None:
    client = FakeClient()
    connection = Connection({"Transfer-Encoding": "chunked"}, [b"12345", b"678901", b"", b"?"])
    limited = app(client, limits={"payload_bytes": 10})
    await limited(connection.scope, connection.receive, connection.send)
    assert connection.status == 413
    assert client.calls == []


async def test_a_body_too_large_by_its_length_is_refused_before_it_is_sent() -> None:
    connection = Connection({"Content-Length": "1000000", "Expect": "100-continue"}, [None])
    await app(FakeClient())(connection.scope, connection.receive, connection.send)
    assert connection.status == 413
    assert connection.events == ["send", "send", "receive"]


async def test_what_a_client_goes_on_sending_is_taken_and_dropped() -> None:
    connection = Connection({"Content-Length": "1000000"}, [b"x" * 500_000, b"x" * 500_000, b""])
    await app(FakeClient())(connection.scope, connection.receive, connection.send)
    assert connection.status == 413
    assert connection.parts == []


@pytest.mark.parametrize("headers", [{"Content-Length": "10"}, {"Transfer-Encoding": "chunked"}])
async def test_half_a_body_is_not_scored(headers: dict[str, str]) -> None:
    client = FakeClient()
    connection = Connection(headers, [b"12345", None])
    await app(client)(connection.scope, connection.receive, connection.send)
    assert connection.status == 408
    assert client.calls == []


@pytest.mark.parametrize("parts", [[], [b"12345"]])
async def test_a_body_that_does_not_arrive_is_waited_for_as_long_as_an_answer(
    parts: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("http_facade.body._DRAIN_SECONDS", 0.01)
    client = FakeClient()
    connection = Connection({"Content-Length": "10"}, parts)
    slow = app(client, facade={"timeout": 0.05})
    await slow(connection.scope, connection.receive, connection.send)
    assert connection.status == 408
    assert connection.body["type"].endswith(":request-timeout")
    assert client.calls == []


# ---- every response ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/api/status", "/livez", "/readyz", "/api/swagger", "/api/docs", "/no/such"]
)
def test_every_response_is_for_one_reader_and_names_no_software(path: str) -> None:
    headers = http(FakeClient()).simulate_get(path).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["server"] == "facade"
    assert re.fullmatch(r"total;dur=\d+\.\d{3}", headers["server-timing"])


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 64])
def test_a_well_formed_request_id_is_taken(given: str) -> None:
    client = FakeClient()
    result = predict(client, headers={"X-Request-Id": given})
    assert result.headers["x-request-id"] == given
    assert client.calls[0].headers["x-request-id"] == given.encode()


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\u00e9", "<script>", "a\nb", None])
def test_any_other_request_id_is_replaced(given: str | None) -> None:
    client = FakeClient()
    result = predict(client, headers={} if given is None else {"X-Request-Id": given})
    made = result.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert client.calls[0].headers["x-request-id"] == made.encode()


# ---- probes and status ------------------------------------------------------------------------


def test_liveness_needs_no_broker() -> None:
    assert http(FakeClient(ready=False)).simulate_get("/livez").status_code == 200


def test_a_client_that_stopped_working_is_not_alive() -> None:
    assert http(FakeClient(alive=False)).simulate_get("/livez").status_code == 503


def test_readiness_is_the_clients(tmp_path: Path) -> None:
    assert http(FakeClient()).simulate_get("/readyz").status_code == 200
    result = http(FakeClient(ready=False)).simulate_get("/readyz")
    assert result.status_code == 503
    assert problem_of(result)["type"].endswith(":not-ready")


def test_readiness_also_waits_for_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    client = http(FakeClient(), facade={"ready_file": str(file)})
    assert client.simulate_get("/readyz").status_code == 503
    file.touch()
    assert client.simulate_get("/readyz").status_code == 200
    file.unlink()
    assert client.simulate_get("/readyz").status_code == 503


def test_the_status_has_its_shape() -> None:
    found = (
        http(FakeClient())
        .simulate_get(
            "/api/status",
            headers={"X-Forwarded-For": "127.0.0.1, 6.6.6.6"},
            host="localhost",
            port=5005,
            remote_addr="127.0.0.1",
        )
        .json
    )
    level = found["system"].pop("current_logging_level")
    assert level in logging.getLevelNamesMapping()
    assert isinstance(found["system"].pop("pid"), int)
    assert found == {
        "system": {
            "current_dir": str(Path.cwd()),
            "python.version": sys.version,
            "request": {"url_root": "http://localhost:5005/", "remote_addr": "127.0.0.1"},
        },
        "kafka": {"pending": 0},
        "model": {"name": "not known yet", "accepts": "not known yet"},
    }


def test_the_status_names_the_model_that_answered_and_what_it_takes() -> None:
    client = FakeClient(model="file:model; version=1", accepts="image/png, image/jpeg")
    found = http(client).simulate_get("/api/status").json
    assert found["model"] == {"name": "file:model; version=1", "accepts": "image/png, image/jpeg"}


# ---- the life of the process ------------------------------------------------------------------


async def test_the_client_lives_as_long_as_the_server_process() -> None:
    client = FakeClient()
    async with testing.ASGIConductor(create_app(client, Settings())) as conductor:
        assert client.events == ["start"]
        await conductor.simulate_get("/livez")
        await conductor.simulate_get("/livez")
        assert client.events == ["start"]
    assert client.events == ["start", "close"]


async def test_a_client_that_cannot_start_stops_the_server() -> None:
    client = FakeClient()

    def refuse() -> None:
        raise ValueError("no such property")

    client.start = refuse  # type: ignore[method-assign]
    sent: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = [{"type": "lifespan.startup"}]

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
    await create_app(client, Settings())(scope, receive, send)
    assert [event["type"] for event in sent] == ["lifespan.startup.failed"]
