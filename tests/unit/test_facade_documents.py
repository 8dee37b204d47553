"""The descriptions of the routes, the page that shows them, and what they offer to try."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import orjson
import pytest
import schemathesis

from http_facade import openapi, problems, swagger
from http_facade.known import known
from http_facade.operations import Operation, Parameter, Response, problem
from http_facade.page import page
from http_facade.resources import routes
from stream_scorer.config import ConfigError, Settings
from stream_scorer.errors import SetupError
from stream_scorer.protocol import Status
from tests.unit.test_facade_app import FakeClient, http

ROOT = Path(__file__).parents[2]


def described(path: str, client: FakeClient | None = None, **sections: Any) -> dict[str, Any]:
    result = http(client or FakeClient(), **sections).simulate_get(path)
    assert result.status_code == 200
    found: dict[str, Any] = result.json
    return found


FROM_THE_SERVER = {414, 431}
"""What gunicorn says by itself, in plain text and with no header of ours."""


def operations_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for methods in document["paths"].values() for one in methods.values()]


def offered(client: FakeClient, **sections: Any) -> dict[str, Any]:
    """The content of scoring's request body."""
    post = described("/api/openapi", client, **sections)["paths"]["/api/predict"]["post"]
    found: dict[str, Any] = post["requestBody"]["content"]
    return found


class Everything:
    """A resource of every kind of operation that a route may need."""

    operations = (
        Operation(
            method="get",
            summary="A thing",
            description="A thing of theirs.",
            parameters=(
                Parameter("id", "path", "Which.", required=True),
                Parameter("offset", "query", "Where.", {"type": "integer"}, required=True),
                Parameter("Prefer", "header", "How."),
            ),
            responses={
                200: Response(
                    "Here.",
                    {},
                    headers=("Location",),
                    sometimes=("Retry-After",),
                    types=("application/json", "text/plain", "*/*"),
                ),
                202: Response("Not yet.", {}, headers=("Retry-After",), types=()),
                404: problem(404),
            },
        ),
        Operation(
            method="delete",
            summary="No thing",
            description="For everybody.",
            responses={204: Response("Gone.", {}, types=())},
            needs_key=False,
        ),
    )


# ---- both documents ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/swagger", "/api/openapi"])
def test_each_method_of_each_route_is_described_and_no_other(path: str) -> None:
    served = {
        (route, name.removeprefix("on_"))
        for route, resource in routes(FakeClient(), Settings()).items()
        for name in dir(resource)
        # All but the files that the page loads. HEAD is as GET, by HTTP itself.
        if name.startswith("on_") and name != "on_head" and not route.startswith("/api/docs/")
    }
    found = described(path)["paths"]
    assert {(route, method) for route, methods in found.items() for method in methods} == served


@pytest.mark.parametrize("path", ["/api/swagger", "/api/openapi"])
def test_every_status_that_scoring_can_end_in_is_told(path: str) -> None:
    possible = {status.http for status in Status} | {
        found.http for found in problems.PROBLEMS.values()
    }
    paths = described(path)["paths"]
    scored = paths["/api/predict"]["post"]["responses"]
    found = paths["/api/predictions/{id}"]["get"]["responses"]
    possible |= FROM_THE_SERVER | {202}
    # 401 only where there are keys.
    assert {int(code) for code in scored} == possible - {401, 404, 410}
    assert {int(code) for code in found} == possible - {401, 408}


@pytest.mark.parametrize("path", ["/api/swagger", "/api/openapi"])
def test_each_operation_is_whole(path: str) -> None:
    operations = operations_of(described(path))
    assert len({one["operationId"] for one in operations}) == len(operations)
    for one in operations:
        assert one["summary"]
        assert one["description"]
        for code, response in one["responses"].items():
            assert 200 <= int(code) < 600
            assert response["description"].strip(" .;")
            ours = int(code) not in FROM_THE_SERVER
            assert ({"X-Request-Id", "Server-Timing"} <= response["headers"].keys()) == ours


@pytest.mark.parametrize("keys", [False, True])
def test_both_documents_are_valid(keys: bool) -> None:
    table = {**routes(FakeClient(), Settings()), "/api/things/{id}": Everything()}
    client = FakeClient(model="m", accepts="image/png, image/*, text/csv, application/json")
    for document in (
        swagger.document(table, keys=keys),
        openapi.document(table, known(client), {}, keys=keys),
    ):
        written = orjson.loads(orjson.dumps(document))
        schemathesis.openapi.from_dict(written).validate()
        del written["paths"]["/api/things/{id}"]["get"]["responses"]["200"]["description"]
        with pytest.raises(ValueError):
            schemathesis.openapi.from_dict(written).validate()


def test_an_operation_can_say_all_that_a_route_may_need() -> None:
    found = openapi.document({"/api/things/{id}": Everything()}, known(FakeClient()), {}, keys=True)
    get, delete = operations_of(found)
    assert get["operationId"] == "get_things_id"
    assert [(one["in"], one["required"]) for one in get["parameters"]] == [
        ("path", True),
        ("query", True),
        ("header", False),
    ]
    assert list(get["responses"]["200"]["content"]) == ["application/json", "text/plain", "*/*"]
    assert "content" not in get["responses"]["202"]
    assert get["responses"]["404"]["description"] == "Not Found."
    assert get["security"] == [{"key": []}]
    assert list(get["responses"]) == ["200", "202", "401", "404", "414", "431"]
    assert get["responses"]["401"]["headers"]["WWW-Authenticate"]["required"]
    headers = get["responses"]["200"]["headers"]
    assert {name: header["required"] for name, header in headers.items()} == {
        "Location": True,
        "Retry-After": False,
    }
    assert list(get["responses"]["431"]["content"]) == ["text/plain"]
    assert "security" not in delete
    assert list(delete["responses"]) == ["204"]
    assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_without_keys_none_is_asked_for() -> None:
    for path in ("/api/swagger", "/api/openapi"):
        text = orjson.dumps(described(path))
        assert b"security" not in text
        assert b'"401"' not in text


# ---- swagger ----------------------------------------------------------------------------------


def test_swagger_has_its_shape() -> None:
    found = described("/api/swagger")
    assert (found["swagger"], found["basePath"]) == ("2.0", "/")
    assert {"title", "version"} <= found["info"].keys()
    post = found["paths"]["/api/predict"]["post"]
    assert post["responses"]["200"]["description"] == "Success"
    assert post["description"] == "Endpoint for scoring."
    assert post["operationId"] == "post_predict"
    assert post["tags"] == ["default"]
    assert [parameter["in"] for parameter in post["parameters"]].count("body") == 1
    assert all(one["produces"] for one in operations_of(found))


# ---- openapi ----------------------------------------------------------------------------------


def test_openapi_has_its_shape() -> None:
    found = described("/api/openapi")
    assert re.fullmatch(r"3\.1\.\d", found["openapi"])
    post = found["paths"]["/api/predict"]["post"]
    assert {one["name"] for one in post["parameters"]} == {
        "Prefer",
        "X-Request-Id",
        "traceparent",
        "tracestate",
    }
    # Accept is not among them: OpenAPI says it by what a response can be.
    assert list(post["responses"]["200"]["content"]) == ["application/json", "*/*"]
    assert post["responses"]["400"]["content"] == {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
    }


def test_before_the_first_answer_any_file_can_be_tried() -> None:
    client = FakeClient()
    assert offered(client) == {
        "application/octet-stream": {"schema": {"contentMediaType": "application/octet-stream"}}
    }
    found = described("/api/openapi", client)["info"]["description"]
    assert "Model: `not known yet`" in found
    assert "Accepted types: `not known yet`" in found


def test_what_answers_told_is_offered_from_then_on() -> None:
    client = FakeClient()
    served = http(client)
    assert "not known yet" in served.simulate_get("/api/openapi").text
    client.model = "models:/digits/3; version=3"
    client.accepts = "image/png, text/csv, application/json; charset=utf-8"
    found = served.simulate_get("/api/openapi").json
    assert "Model: `models:/digits/3; version=3`" in found["info"]["description"]
    assert found["paths"]["/api/predict"]["post"]["requestBody"]["content"] == {
        "image/png": {"schema": {"contentMediaType": "image/png"}},
        "text/csv": {"schema": {"type": "string"}},
        "application/json; charset=utf-8": {"schema": {}},
    }


@pytest.mark.parametrize(
    ("accepts", "accepted"),
    [
        (None, ()),
        ("", ()),
        (", ,", ()),
        ("a/b", ("a/b",)),
        (" image/* ,*/*,a/b", ("image/*", "*/*", "a/b")),
        ("a/b, a/b", ("a/b",)),
        ("no type, a/b", ("a/b",)),
        ("<b>/<i>, a/b\r\nc/d, \u20ac/e", ()),
        (f"a/b, {'x/y' * 1000}, c/d", ("a/b",)),
    ],
)
def test_only_media_types_are_believed_to_be_such(
    accepts: str | None, accepted: tuple[str, ...]
) -> None:
    found = known(FakeClient(accepts=accepts))
    assert found.accepted == accepted
    assert found.accepts == (", ".join(accepted) or "not known yet")


def test_a_reply_can_write_nothing_but_its_own_words_into_the_page() -> None:
    client = FakeClient(model="a`<img src=x>\n\n# b" + "c" * 5000)
    text = described("/api/openapi", client)["info"]["description"]
    (line,) = [line for line in text.splitlines() if line.startswith("Model:")]
    assert re.fullmatch(r"Model: `a'<img src=x>\?\?# bc{1000,1024}`  ", line)


# ---- examples ---------------------------------------------------------------------------------


def examples(folder: Path, **files: bytes) -> dict[str, Any]:
    """The section of a conf that names these files, each by the end of its media type."""
    types = {
        "json": "application/json",
        "geo": "application/geo+json",
        "csv": "text/csv",
        "png": "image/png",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {"examples": {types[name]: str(folder / name) for name in files}}


def test_examples_come_first_and_show_what_is_text(tmp_path: Path) -> None:
    facade = examples(tmp_path, png=b"\x89PNG", csv=b"a,b\n", json=b'{"a": [1.5, null]}', geo=b"1")
    content = offered(FakeClient(accepts="image/jpeg, text/csv"), facade=facade)
    assert list(content) == [
        *("image/png", "text/csv", "application/json", "application/geo+json", "image/jpeg"),
    ]
    assert content["image/png"] == {"schema": {"contentMediaType": "image/png"}}
    assert content["text/csv"]["example"] == "a,b\n"
    assert content["application/json"]["example"] == {"a": [1.5, None]}
    assert content["application/geo+json"]["example"] == 1


def test_examples_are_offered_before_the_first_answer_too(tmp_path: Path) -> None:
    content = offered(FakeClient(), facade=examples(tmp_path, csv=b"a"))
    assert list(content) == ["text/csv", "application/octet-stream"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"json": b"{"}, "json is not JSON @ facade.examples.application/json"),
        ({"json": b"\xff"}, "json is not JSON @ facade.examples.application/json"),
        ({"csv": b"\xff"}, "csv is not text in UTF-8 @ facade.examples.text/csv"),
        ({"png": b"x" * 101}, "png has 101 bytes; limits.payload_bytes is 100 @ facade.examples"),
    ],
)
def test_an_example_that_could_not_be_sent_is_refused_at_start(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        http(FakeClient(), facade=examples(tmp_path, **files), limits={"payload_bytes": 100})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "why"), [("none", "No such file or directory"), (".", "Is a dir")]
)
def test_an_example_that_is_not_there_is_refused_at_start(
    name: str, why: str, tmp_path: Path
) -> None:
    facade = {"examples": {"image/png": str(tmp_path / name)}}
    with pytest.raises(ConfigError, match=why) as caught:
        http(FakeClient(), facade=facade)
    assert str(caught.value).endswith("@ facade.examples.image/png")


def test_the_command_refuses_it_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stream_scorer", "facade"],
        cwd=ROOT,
        env={**os.environ, "SCORER_FACADE_EXAMPLES": "{text/csv: none.csv}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "none.csv: No such file or directory @ facade.examples.text/csv" in line


# ---- the page ---------------------------------------------------------------------------------


def test_the_page_loads_only_files_that_are_served_here() -> None:
    served = http(FakeClient())
    result = served.simulate_get("/api/docs")
    assert result.status_code == 200
    assert result.headers["content-type"] == "text/html; charset=utf-8"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', result.text)
    types = {
        "css": "text/css",
        "js": "text/javascript",
        "png": "image/png",
        "openapi": "application/json",
    }
    assert {Path(each).name.rpartition(".")[2] for each in loaded} == set(types)
    for each in loaded:
        found = served.simulate_get(f"/api/{each}")
        assert found.status_code == 200
        assert found.headers["content-type"] == types[each.rpartition(".")[2]]
        assert found.headers["content-length"] == str(len(found.content))
        assert len(found.content) > 100


def test_the_page_may_neither_load_nor_tell_anything_elsewhere() -> None:
    policy = http(FakeClient()).simulate_get("/api/docs").headers["content-security-policy"]
    sources = dict(part.split(" ", 1) for part in policy.split("; "))
    assert sources["default-src"] == "'none'"
    assert sources.pop("img-src") == "'self' data:"  # pictures inside the style sheet
    assert set(sources.values()) == {"'none'", "'self'"}


def test_assets_are_cached_and_answers_are_not() -> None:
    served = http(FakeClient())
    asset = served.simulate_get("/api/docs/swagger-ui.css")
    assert asset.headers["cache-control"] == "public, max-age=3600"
    assert asset.headers["x-content-type-options"] == "nosniff"
    assert served.simulate_get("/api/openapi").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "name",
    ["", "swagger-ui.js", "oauth2-redirect.html", "../page.py", "%2e%2e/page.py", "..%2fpage.py"],
)
def test_no_other_file_is_served(name: str) -> None:
    assert http(FakeClient()).simulate_get(f"/api/docs/{name}").status_code == 404


def test_what_is_ours_of_the_page_is_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["http_facade"]
    folder = ROOT / "http_facade"
    shipped = {path for pattern in patterns for path in folder.glob(pattern)}
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert {path for path in files - shipped if path.suffix not in {".py", ".pyc"}} == set()


def test_the_page_does_not_bring_flask() -> None:
    program = "import sys; from http_facade.page import page; page(); print('flask' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("package", "message"), [("no_such_package", "not installed"), ("falcon", "has no file dist/")]
)
def test_assets_that_are_not_there_stop_the_start(
    package: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("http_facade.page._PACKAGE", package)
    with pytest.raises(SetupError, match=message):
        page()


def test_a_file_that_has_gone_is_a_problem_that_nobody_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("http_facade.page._OURS", tmp_path)
    result = http(FakeClient()).simulate_get("/api/docs/init.js")
    assert result.status_code == 500
    assert result.headers["content-type"] == "application/problem+json"
    assert result.headers["cache-control"] == "no-store"
    assert str(tmp_path) not in result.text
