"""What ``/api/openapi`` says of the facade is so: generated requests, and one for each answer."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import schemathesis
from schemathesis import APIOperation, BaseSchema, Case, Config, Response

from tests.engine import ROOT, environment_for, facade_process, worker_process
from tests.kafka_server import MakeTopics, free_ports

KINDS = ("requests", "results", "replies", "dead_letters")
WINES = (ROOT / "samples/sklearn_wine/data/predict-wine-quality.json").read_bytes()
QUALITIES = [5.370157819225251, 5.535714285714286, 5.760869565217392]
JSON = "application/json"
KEY = "the-key-of-the-contract"
NOBODY = f"{'0' * 16}.{'0' * 32}"
LIMIT = 100_000
PATIENCE = 30.0


@pytest.fixture(scope="module")
def ports(
    kafka: str, module_topics: MakeTopics, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, int]]:
    """The ports of two facades in front of one worker: without keys, and with one."""
    folder = tmp_path_factory.mktemp("contract")
    names = dict(zip(KINDS, module_topics(4, *KINDS), strict=True))
    sections = {"worker": {"group": names["requests"]}, "limits": {"payload_bytes": LIMIT}}
    free = {
        **environment_for(kafka, names, **sections),
        "SCORER_CONF": "samples/sklearn_wine/conf.yaml",
    }
    locked = {**free, "SCORER_FACADE_API_KEYS": f"[{KEY}]"}
    one, other = free_ports(2)
    with (
        facade_process(folder, "free", free, one),
        facade_process(folder, "locked", locked, other),
        worker_process(folder, "worker", free),
    ):
        yield one, other


def document_of(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/api/openapi", headers={"Authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


def operations_of(document: bytes) -> list[tuple[str, str]]:
    paths = json.loads(document)["paths"]
    return [(path, method) for path, methods in paths.items() for method in methods]


# ---- whatever is asked ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("locked", "headers", "examples"),
    [(False, [], 50), (True, ["--header", f"Authorization: Bearer {KEY}"], 10)],
    ids=["there are no keys", "the key"],
)
def test_whatever_is_asked_the_answer_is_one_that_was_told(
    locked: bool,
    headers: list[str],
    examples: int,
    ports: tuple[int, int],
    tmp_path: Path,
) -> None:
    port = ports[locked]
    document = document_of(port)
    # A file, as of an address the tool would leave out what stands there itself.
    (tmp_path / "openapi.json").write_bytes(document)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--no-color"),
            *("--url", f"http://127.0.0.1:{port}", *headers),
            *("--generation-deterministic", "--max-examples", str(examples)),
            # What of JSON can be scored is the plugin's to say, and no part of the document.
            *("--exclude-checks", "positive_data_acceptance"),
            *("--report", "json", "--report-json-path", "report.json"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_bytes())
    operations = report["operations"]
    assert operations["tested"] == operations["total"] == len(operations_of(document))
    # The document's example was scored.
    assert report["valid_rates"]["POST /api/predict"]["examples"]["accepted"] == 1


# ---- each answer ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def api(ports: tuple[int, int]) -> BaseSchema:
    url = f"http://127.0.0.1:{ports[0]}/api/openapi"
    return schemathesis.openapi.from_url(url, config=Config())


def operation(api: BaseSchema, path: str, method: str) -> APIOperation[Any, Any, Any, Any]:
    return api[path][method]


def scoring(api: BaseSchema, headers: dict[str, str]) -> Case[Any]:
    return operation(api, "/api/predict", "POST").Case(
        headers={"Content-Type": JSON, **headers}, media_type=JSON
    )


def asking(api: BaseSchema, id_: str, query: dict[str, Any]) -> Case[Any]:
    return operation(api, "/api/predictions/{id}", "GET").Case(
        path_parameters={"id": id_}, query=query
    )


def test_without_the_key_every_answer_is_as_told(ports: tuple[int, int]) -> None:
    document = document_of(ports[1])
    url = f"http://127.0.0.1:{ports[1]}"
    locked = schemathesis.openapi.from_dict(json.loads(document), config=Config())
    refused = []
    for path, method in operations_of(document):
        case = operation(locked, path, method).Case(path_parameters={"id": NOBODY})
        if case.call_and_validate(base_url=url).status_code == 401:
            refused.append(path)
    assert refused == [
        *("/api/predict", "/api/predictions/{id}", "/metrics", "/api/swagger", "/api/openapi"),
        "/api/docs",
    ]


@pytest.mark.parametrize(
    ("payload", "headers", "status"),
    [
        (WINES, {}, 200),
        (WINES, {"Accept": "text/csv", "X-Request-Id": "no id, this", "Prefer": "wait=9"}, 200),
        (WINES, {"Prefer": "respond-async, wait=9"}, 200),
        (WINES, {"Prefer": "respond-async"}, 202),
        (b"", {}, 400),
        (b"{}", {}, 400),
        (b"\xff", {}, 400),
        (b" " * (LIMIT + 1), {}, 413),
        (WINES, {"Content-Type": "text/plain"}, 415),
        (WINES, {"Content-Encoding": "gzip"}, 415),
        (WINES, {"tracestate": "x" * 9000}, 431),
    ],
)
def test_an_answer_to_a_payload_is_as_told(
    api: BaseSchema, payload: bytes, headers: dict[str, str], status: int
) -> None:
    assert scoring(api, headers).call_and_validate(data=payload).status_code == status


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"partition": 0, "offset": 0, "until": 1}, 410),
        ({"partition": 0, "offset": 10**6, "until": 1}, 410),
        ({"partition": 99, "offset": 0, "until": 1}, 404),
        ({"partition": "one", "offset": 0, "until": 1}, 404),
        ({"partition": 0, "offset": 0}, 404),
        ({"partition": 0, "offset": 0, "until": "1" * 5000}, 414),
    ],
)
def test_an_answer_to_who_never_sent_anything_is_as_told(
    api: BaseSchema, query: dict[str, Any], status: int
) -> None:
    answer = patiently(api, asking(api, NOBODY, query).call_and_validate())
    assert answer.status_code == status


def test_answers_that_were_not_waited_for_are_as_told(api: BaseSchema) -> None:
    answer = scoring(api, {"Prefer": "respond-async"}).call_and_validate(data=WINES)
    answer = patiently(api, answer)
    assert (answer.status_code, answer.json()) == (200, QUALITIES)


def patiently(api: BaseSchema, answer: Response) -> Response:
    deadline = time.monotonic() + PATIENCE
    while answer.status_code == 202 and time.monotonic() < deadline:
        answer = asked_again(api, answer)
    return answer


def asked_again(api: BaseSchema, answer: Response) -> Response:
    (location,) = answer.headers["location"]
    place = urlsplit(location)
    query = {name: value for name, (value,) in parse_qs(place.query).items()}
    return asking(api, place.path.rpartition("/")[2], query).call_and_validate()
