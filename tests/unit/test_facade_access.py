"""Every request is counted and told in one line, whatever is sent and however it ends."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest
from falcon import testing

from http_facade.access import Exchange
from http_facade.calls import Overloaded
from stream_scorer.config import Logging
from tests.unit.test_facade_app import Connection, FakeClient, app, http, predict
from tests.unit.test_facade_metrics import value

LOGGER = "http_facade.access"
CANARY = "canary-7f3a"


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)


def line_of(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The one line that was logged."""
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    return record


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    names = ("method", "path", "status", "bytes_in", "bytes_out", "request_id", "remote_addr")
    return {name: getattr(record, name) for name in names}


def count_of(client: FakeClient, path: str, method: str, status: int) -> float | None:
    text = client.metrics.exposition()
    return value(text, "requests_total", path=path, method=method, status=str(status))


# ---- the line ---------------------------------------------------------------------------------


def test_a_request_is_one_line_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    result = predict(
        FakeClient(),
        b"x" * 480,
        headers={"X-Request-Id": "mine"},
        remote_addr="10.1.2.3",
    )
    record = line_of(caplog)
    assert record.levelno == logging.INFO
    assert fields_of(record) == {
        "method": "POST",
        "path": "/api/predict",
        "status": 200,
        "bytes_in": 480,
        "bytes_out": len(result.content),
        "request_id": "mine",
        "remote_addr": "10.1.2.3",
    }
    milliseconds = record.duration_ms  # type: ignore[attr-defined]  # an extra
    assert milliseconds > 0
    assert record.getMessage() == (
        f"POST /api/predict 200 in=480 out={len(result.content)} ms={milliseconds:.3f} "
        "id=mine from=10.1.2.3"
    )


def test_nothing_secret_is_told(caplog: pytest.LogCaptureFixture) -> None:
    http(FakeClient()).simulate_post(
        "/api/predict",
        body=CANARY.encode(),
        query_string=f"key={CANARY}",
        headers={"Authorization": f"Bearer {CANARY}", "Cookie": CANARY, "Accept": CANARY},
    )
    assert CANARY not in str(vars(line_of(caplog)))


@pytest.mark.parametrize(
    ("method", "keys", "status"),
    [("GET", [], 404), ("PUT", [], 405), ("GET", ["a-key-that-was-not-sent"], 401)],
)
def test_the_id_of_a_prediction_is_not_told(
    caplog: pytest.LogCaptureFixture, method: str, keys: list[str], status: int
) -> None:
    served = http(FakeClient(), facade={"api_keys": keys})
    path = f"/api/predictions/{CANARY}"
    assert served.simulate_request(method, path, params={"id": CANARY}).status_code == status
    assert CANARY not in str(vars(line_of(caplog)))
    assert fields_of(line_of(caplog))["path"] == "/api/predictions/{id}"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_what_is_asked_every_few_seconds_is_told_at_debug(
    caplog: pytest.LogCaptureFixture, path: str
) -> None:
    assert http(FakeClient()).simulate_get(path).status_code == 200
    assert (line_of(caplog).levelno, fields_of(line_of(caplog))["path"]) == (logging.DEBUG, path)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/no/such", "/no/such"),
        ("/a%0d%0aINFO%20forged", "/a%0D%0AINFO%20forged"),
        ("/a 200 in=0", "/a%20200%20in%3D0"),
        ("/%1b[31m", "/%1B%5B31m"),
        ("/%e2%80%a8", "/%E2%80%A8"),
        ("/%25", "/%25"),
        ("/" + "x" * 10_000, "/" + "x" * 255),
        ("/" + "%0a" * 10_000, ("/" + "%0A" * 100)[:256]),
    ],
    ids=range(8),
)
def test_a_path_cannot_write_lines_or_fields(
    caplog: pytest.LogCaptureFixture, path: str, told: str
) -> None:
    assert http(FakeClient()).simulate_get(path).status_code == 404
    record = line_of(caplog)
    assert fields_of(record)["path"] == told
    assert record.getMessage().startswith(f"GET {told} 404 in=0 ")
    assert record.getMessage().isprintable()


@pytest.mark.parametrize("method", ["GET\nINFO forged", "x" * 10_000])
async def test_what_a_lax_server_lets_pass_cannot_either(
    caplog: pytest.LogCaptureFixture, method: str
) -> None:
    client = FakeClient()
    connection = Connection({}, [b""])
    connection.scope["method"] = method
    await app(client)(connection.scope, connection.receive, connection.send)
    message = line_of(caplog).getMessage()
    assert message.isprintable()
    assert message.count(" ") == 7
    assert len(message) < 800
    labels = set(re.findall(rb'method="([^"]*)"', client.metrics.exposition()))
    assert labels == {b"other"}


def test_nothing_is_made_of_a_line_that_nobody_wants(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, LOGGER)
    monkeypatch.delattr(Exchange, "_tell")
    client = FakeClient()
    assert predict(client).status_code == 200
    assert count_of(client, "/api/predict", "POST", 200) == 1


def test_the_line_in_the_format_of_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    predict(FakeClient())
    assert "POST /api/predict 200" in logging.Formatter(Logging().format).format(line_of(caplog))


# ---- however it ends --------------------------------------------------------------------------


def test_a_problem_is_told_with_its_status(caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient(Overloaded("why"))
    result = predict(client)
    assert fields_of(line_of(caplog))["status"] == 503
    assert fields_of(line_of(caplog))["bytes_out"] == len(result.content)
    assert count_of(client, "/api/predict", "POST", 503) == 1


def test_an_error_of_ours_is_told_as_any_other(caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient(ZeroDivisionError(CANARY))
    predict(client, headers={"X-Request-Id": "mine"})
    assert fields_of(line_of(caplog))["status"] == 500
    assert CANARY not in line_of(caplog).getMessage()
    assert count_of(client, "/api/predict", "POST", 500) == 1
    (failure,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert failure.request_id == "mine"  # type: ignore[attr-defined]  # an extra


def test_what_has_no_route_is_counted_together() -> None:
    client = FakeClient()
    for path in ("/no", "/such", "/api/predict/more"):
        http(client).simulate_get(path)
    assert count_of(client, "other", "GET", 404) == 3
    assert http(client).simulate_get("/api/predict").status_code == 405
    assert count_of(client, "/api/predict", "GET", 405) == 1


async def test_a_client_that_goes_away_in_mid_body(caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient()
    connection = Connection({"Content-Length": "10"}, [b"12345", None])
    await app(client)(connection.scope, connection.receive, connection.send)
    fields = fields_of(line_of(caplog))
    assert (fields["status"], fields["bytes_in"]) == (408, 5)
    assert count_of(client, "/api/predict", "POST", 408) == 1


async def test_a_client_that_goes_away_while_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient()
    waiting = asyncio.Event()

    async def call(*_: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    client.call = call  # type: ignore[assignment]
    connection = Connection({"Content-Length": "2", "X-Request-Id": "mine"}, [b"{}", b""])
    task = asyncio.create_task(app(client)(connection.scope, connection.receive, connection.send))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    fields = fields_of(line_of(caplog))
    assert (fields["status"], fields["bytes_out"], fields["request_id"]) == (499, 0, "mine")
    assert count_of(client, "/api/predict", "POST", 499) == 1


async def test_a_request_that_the_framework_does_not_take(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = FakeClient()
    connection = Connection({}, [b""])
    connection.scope["http_version"] = "0.8"
    with pytest.raises(Exception, match="version"):
        await app(client)(connection.scope, connection.receive, connection.send)
    fields = fields_of(line_of(caplog))
    assert (fields["status"], fields["request_id"], fields["path"]) == (500, None, "/api/predict")
    assert count_of(client, "/api/predict", "POST", 500) == 1


async def test_a_request_leaves_nothing_that_has_to_be_looked_for() -> None:
    connection = Connection({}, [b"{}", b""])
    await app(FakeClient())(connection.scope, connection.receive, connection.send)
    assert not any(isinstance(found, Exchange) for found in connection.scope.values())


# ---- the metrics over http --------------------------------------------------------------------


def test_the_metrics_are_served_as_text() -> None:
    client = FakeClient()
    predict(client)
    client.metrics.counts.timeouts.inc(3)
    result: testing.Result = http(client).simulate_get("/metrics")
    assert result.status_code == 200
    assert result.headers["content-type"].startswith("text/plain; version=")
    assert value(result.content, "timeouts_total") == 3
    assert value(result.content, "requests_total", path="/api/predict", method="POST", status="200")
