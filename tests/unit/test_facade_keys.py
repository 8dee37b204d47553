"""Who is let in where keys are set, and what the others are told."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import falcon
import pytest
from falcon import testing

from http_facade.app import create_app
from http_facade.resources import routes
from stream_scorer.config import Settings
from tests.unit.test_facade_app import Connection, FakeClient, app, http, problem_of

OLD = "old-key-of-many-characters"
NEW = "new-key/with+odd~characters:="
KEYS = {"api_keys": [OLD, NEW]}
OPEN = {"/livez", "/readyz", "/api/status"}
FOR_BROWSERS = [
    "/api/docs",
    "/api/docs/",
    "/api/docs/swagger-ui.js",
    "/api/openapi",
    "/api/swagger",
]
ASK = 'Basic realm="stream-scorer", charset="UTF-8"'


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(key: str, user: str = "anybody") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}


def ask(
    method: str, path: str, headers: dict[str, str] | None = None, client: FakeClient | None = None
) -> testing.Result:
    return http(client or FakeClient(), facade=KEYS).simulate_request(
        method, path, headers=headers or {}
    )


def challenges(result: testing.Result) -> list[str]:
    return [value for name, value in result.headers.items() if name == "www-authenticate"]


@pytest.mark.parametrize("key", [OLD, NEW])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_each_key_lets_in(key: str, scheme: str) -> None:
    assert ask("POST", "/api/predict", {"Authorization": f"{scheme} {key}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": OLD},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Token {OLD}"},
        {"Authorization": f"Bearer {OLD}x"},
        {"Authorization": f"Bearer {OLD[:-1]}"},
        {"Authorization": f"Bearer {OLD.upper()}"},
        {"Authorization": f"Bearer {OLD}, Bearer {NEW}"},
        {"Authorization": "Bearer \xe9\xff"},
        {"Authorization": f"Bearer {hashlib.sha256(OLD.encode()).hexdigest()}"},
        {"X-Api-Key": OLD},
        {"Cookie": f"key={OLD}"},
    ],
)
def test_nobody_else_is_told_more_than_that_a_key_is_needed(headers: dict[str, str]) -> None:
    client = FakeClient()
    told = []
    for method, path in [("POST", "/api/predict"), ("GET", "/api/predict"), ("PUT", "/no/such")]:
        result = ask(method, path, headers, client)
        assert result.status_code == 401
        assert result.headers["www-authenticate"] == "Bearer"
        told.append(problem_of(result))
    assert client.calls == []
    # The same of what is there, of what is not, and of what is there for other methods.
    assert told == [told[0]] * 3
    assert told[0]["type"].endswith(":unauthorized")


def test_only_probes_and_the_status_are_open() -> None:
    paths = set(routes(FakeClient(), Settings())) | {
        "/",
        "/no/such",
        "/livez/",
        "//livez",
        "/LIVEZ",
    }
    assert {path for path in paths if ask("GET", path).status_code != 401} == OPEN


async def test_nothing_of_a_body_is_read_before_the_key() -> None:
    client = FakeClient()
    connection = Connection({"Content-Length": "10"}, [None])
    await app(client, facade=KEYS)(connection.scope, connection.receive, connection.send)
    assert connection.status == 401
    assert connection.events[:2] == ["send", "send"]


def test_every_key_is_compared_and_only_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr("http_facade.keys.hmac.compare_digest", compare)
    assert ask("POST", "/api/predict", bearer(OLD)).status_code == 200
    digests = [hashlib.sha256(key.encode()).digest() for key in (OLD, NEW)]
    assert compared == [(digests[0], digest) for digest in digests]


# ---- browsers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FOR_BROWSERS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_browsers_are_asked_for_the_key_on_a_line_of_its_own(method: str, path: str) -> None:
    connection = Connection({}, [b""])
    connection.scope |= {"path": path, "method": method}
    await app(FakeClient(), facade=KEYS)(connection.scope, connection.receive, connection.send)
    found = [v.decode() for name, v in connection.sent[0]["headers"] if name == b"www-authenticate"]
    assert sorted(found) == [ASK, "Bearer"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/docs"), ("GET", "/api/documents"), ("GET", "/api/predict")]
)
async def test_nobody_else_is_asked_so(method: str, path: str) -> None:
    connection = Connection({}, [b""])
    connection.scope |= {"path": path, "method": method}
    await app(FakeClient(), facade=KEYS)(connection.scope, connection.receive, connection.send)
    found = [v for name, v in connection.sent[0]["headers"] if name == b"www-authenticate"]
    assert found == [b"Bearer"]


@pytest.mark.parametrize("user", ["", "anybody", "\u00e9"])
def test_a_password_lets_in_to_read(user: str) -> None:
    assert ask("GET", "/api/swagger", basic(NEW, user)).status_code == 200
    assert ask("HEAD", "/api/swagger", basic(NEW, user)).status_code == 200


def test_a_password_never_lets_in_to_score() -> None:
    client = FakeClient()
    assert ask("POST", "/api/predict", basic(NEW), client).status_code == 401
    assert ask("OPTIONS", "/api/predict", basic(NEW), client).status_code == 401
    assert client.calls == []


@pytest.mark.parametrize(
    "value", ["Basic", "Basic ???", "Basic \xe9", f"Basic {NEW}", basic("wrong")["Authorization"]]
)
def test_a_wrong_password_does_not_let_in(value: str) -> None:
    assert ask("GET", "/api/swagger", {"Authorization": value}).status_code == 401


# ---- the status -------------------------------------------------------------------------------

KAFKA: dict[str, object] = {
    "bootstrap.servers": "inner.broker:9092",
    "trouble": "Kafka at inner.broker:9092: no",
    "ready": True,
}


class Telling(FakeClient):
    def snapshot(self) -> dict[str, object]:
        return KAFKA


def status(headers: dict[str, str], *, keys: bool = True) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = {"facade": KEYS} if keys else {}
    client = http(Telling(model="file:/srv/model; version=3"), **sections)
    found: dict[str, Any] = client.simulate_get("/api/status", headers=headers).json
    return found


def test_the_status_tells_strangers_no_pid_path_version_or_address() -> None:
    told = status({})
    assert told.keys() == {"system", "kafka", "model"}
    assert told["system"].keys() == {"request", "current_logging_level"}
    assert (told["kafka"], told["model"]) == (
        {"ready": True},
        {"accepts": "not known yet"},
    )


def test_the_status_tells_all_to_others() -> None:
    whole = status({}, keys=False)
    assert {"pid", "current_dir", "python.version"} <= whole["system"].keys()
    assert (whole["kafka"], whole["model"]) == (
        KAFKA,
        {"name": "file:/srv/model; version=3", "accepts": "not known yet"},
    )
    assert status(bearer(NEW)) == status(basic(OLD)) == whole


# ---- no doors beside --------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, bearer(NEW)])
def test_no_other_site_is_allowed_in(headers: dict[str, str]) -> None:
    asked = headers | {"Origin": "https://evil", "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "GET", "POST"):
        for path in ("/api/predict", "/api/status", "/api/swagger", "/livez"):
            names = ask(method, path, asked).headers
            assert [name for name in names if "access-control" in name.lower()] == []


async def test_there_are_no_websockets() -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    for path in ("/livez", "/no/such"):
        scope = testing.create_scope_ws(path=path)
        await create_app(FakeClient(), Settings())(scope, receive, send)
    assert sent == [{"type": "websocket.close"}] * 2


def test_falcon_s_own_marker_is_no_way_round() -> None:
    assert ask("WEBSOCKET", "/no/such").status_code == 401
    known = ask("WEBSOCKET", "/livez", bearer(NEW))
    assert (known.status_code, known.headers["server"]) == (400, "facade")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/api/status", "/api/swagger"])
def test_head_answers_as_get_without_a_body(path: str) -> None:
    client = http(FakeClient())
    got, head = client.simulate_get(path), client.simulate_head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(got.content))
    assert head.headers.keys() == got.headers.keys()


def test_the_framework_has_the_list_that_a_second_challenge_needs() -> None:
    assert falcon.asgi.Response()._extra_headers is None
