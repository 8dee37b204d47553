from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_scorer.protocol import (
    PROBLEM_JSON,
    Answer,
    DeadLetter,
    Failure,
    Request,
    Signature,
    Status,
    last_header,
    printable,
    problem,
    problem_body,
    stage_times,
)
from tests.fakes import SIGNATURE, request


def read(*headers: tuple[str, bytes | None], default: str | None = None) -> Request:
    """A request with these headers, read."""
    fresh = Request("score-requests", 1, 2, key=None, payload=b"{}", headers=[*headers])
    fresh.read_headers(default)
    return fresh


# The table of statuses, as docs/protocol.md gives it: header, HTTP status, dead letter without
# and with a reply address.
STATUSES = [
    ("ok", 200, False, False),
    ("invalid-payload", 400, True, False),
    ("invalid-request", 400, True, True),
    ("unsupported-content-type", 415, True, False),
    ("payload-too-large", 413, True, False),
    ("expired", 504, False, False),
    ("model-error", 500, True, True),
]


@pytest.mark.parametrize(("value", "http", "alone", "replied"), STATUSES)
def test_each_status_has_its_number_and_its_rule_for_dead_letters(
    value: str, http: int, alone: bool, replied: bool
) -> None:
    status = next(status for status in Status if status.value == value)
    assert status.http == http
    assert status.title
    assert Answer(request(), status, PROBLEM_JSON, b"").is_dead_letter is alone
    asked = request(reply_topic="score-replies")
    assert Answer(asked, status, PROBLEM_JSON, b"").is_dead_letter is replied


def test_there_are_no_other_statuses() -> None:
    assert [status.value for status in Status] == [value for value, *_ in STATUSES]
    assert {status.dead_letter for status in Status} == set(DeadLetter)


def test_every_header_of_the_contract_is_read() -> None:
    found = read(
        ("content-type", b"application/json; charset=utf-8"),
        ("accept", "application/vnd.é+json".encode()),
        ("correlation-id", b"\x00\xff"),
        ("reply-topic", b"score-replies"),
        ("reply-partition", b"3"),
        ("deadline", b"1760000000000"),
    )
    assert found.fault is None
    assert found.content_type == "application/json; charset=utf-8"
    assert found.accept == "application/vnd.é+json"
    assert found.correlation_id == b"\x00\xff"
    assert (found.reply_topic, found.reply_partition) == ("score-replies", 3)
    assert found.deadline == 1_760_000_000_000


def test_the_last_header_of_a_name_wins() -> None:
    found = read(
        *(("content-type", b"text/csv"), ("content-type", b"application/json")),
        *(("correlation-id", b"a"), ("correlation-id", b"b")),
        *(("deadline", b"1"), ("deadline", b"2")),
    )
    assert (found.content_type, found.correlation_id, found.deadline) == (
        "application/json",
        b"b",
        2,
    )


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("deadline", b"soon", b"5"),
        ("content-type", b"\xff", b"application/json"),
        ("reply-topic", b"\xff", b"score-replies"),
        ("reply-partition", b"-1", b"5"),
    ],
)
def test_a_wrong_header_that_a_later_one_replaces_does_no_harm(
    name: str, wrong: bytes, right: bytes
) -> None:
    assert read((name, wrong), (name, right)).fault is None
    found = read(("reply-topic", b"t"), (name, wrong), (name, right))
    assert found.reply_topic == ("score-replies" if name == "reply-topic" else "t")


@pytest.mark.parametrize("name", ["deadline", "reply-partition"])
def test_a_wrong_header_is_not_saved_by_an_earlier_one(name: str) -> None:
    assert read((name, b"5"), (name, b"soon")).fault is not None


def test_a_null_header_counts_as_not_sent() -> None:
    names = ["content-type", "accept", "correlation-id", "reply-topic", "deadline", "x-a"]
    assert read(*((name, None) for name in names)) == Request(
        "score-requests", 1, 2, None, b"{}", [(name, None) for name in names]
    )


def test_a_missing_content_type_is_the_configured_one() -> None:
    assert read(default="text/csv").content_type == "text/csv"
    assert read(("content-type", b"image/png"), default="text/csv").content_type == "image/png"


@pytest.mark.parametrize(
    "text",
    [b"", b"-1", b"+1", b"1 ", b" 1", b"1_0", b"1.0", b"1e3", b"0x1", b"9" * 19, b"\xd9\xa1"],
)
@pytest.mark.parametrize("name", ["deadline", "reply-partition"])
def test_a_number_that_is_not_decimal_text_is_the_requests_fault(name: str, text: bytes) -> None:
    found = read((name, text))
    assert found.fault == f"header {name!r} is not a decimal number"
    assert (found.deadline, found.reply_partition) == (None, None)


@pytest.mark.parametrize("name", ["content-type", "accept", "reply-topic"])
def test_text_that_is_not_utf8_is_the_requests_fault(name: str) -> None:
    assert read((name, b"\xff")).fault == f"header {name!r} is not UTF-8"


@pytest.mark.parametrize(
    "wrong", [("reply-topic", b"\xff"), ("reply-partition", b"one"), ("reply-partition", b"")]
)
def test_an_address_that_cannot_be_read_is_not_used(wrong: tuple[str, bytes]) -> None:
    found = read(("reply-topic", b"score-replies"), ("reply-partition", b"2"), wrong)
    assert found.fault is not None
    assert (found.reply_topic, found.reply_partition) == (None, None)


def test_another_fault_leaves_the_reply_address() -> None:
    found = read(("deadline", b"soon"), ("reply-topic", b"t"), ("reply-partition", b"2"))
    assert found.fault is not None
    assert (found.reply_topic, found.reply_partition) == ("t", 2)


def test_trace_and_x_headers_pass_through_in_order() -> None:
    passed = [("x-b", b"1"), ("traceparent", b"2"), ("x-a", b"\xff"), ("tracestate", b"4")]
    found = read(*passed, ("traceparents", b"5"), ("y-a", b"6"), ("X-A", b"7"), ("x-b", b"8"))
    assert found.passed_through == [*passed, ("x-b", b"8")]


names = st.sampled_from(
    ["content-type", "accept", "correlation-id", "reply-topic", "reply-partition", "deadline", "x-"]
) | st.text(max_size=8)


@given(st.lists(st.tuples(names, st.none() | st.binary(max_size=20)), max_size=8))
def test_no_headers_can_make_reading_raise(headers: list[tuple[str, bytes | None]]) -> None:
    found = read(*headers)
    assert found.headers == headers
    answer = problem(found, Status.INVALID_REQUEST, found.fault or "")
    assert json.loads(answer.body)["detail"] == (found.fault or "")
    for _, value in answer.headers(SIGNATURE):
        assert isinstance(value, bytes)


def test_a_request_is_named_by_where_it_stands() -> None:
    assert request(3, 14).id == "score-requests/3/14"


def test_an_answer_carries_the_headers_of_the_contract() -> None:
    asked = request(
        3, 14, correlation_id=b"\x00\xff", passed_through=[("x-a", b"1"), ("x-a", b"2")]
    )
    answer = Answer(
        asked, Status.OK, "application/json", b"[]", stage_times(0.5, 2, 0.0004), queue=1
    )
    assert answer.headers(Signature.of("modèle; version=1", ())) == [
        ("content-type", b"application/json"),
        ("status", b"ok"),
        ("request", b"score-requests/3/14"),
        ("model", "modèle; version=1".encode()),
        (
            "server-timing",
            b"queue;dur=1, decode;dur=0.500, predict;dur=2.000, encode;dur=0.000",
        ),
        ("correlation-id", b"\x00\xff"),
        ("x-a", b"1"),
        ("x-a", b"2"),
    ]


@pytest.mark.parametrize("status", [Status.OK, Status.UNSUPPORTED_CONTENT_TYPE])
def test_a_reply_tells_what_is_accepted_and_no_other_answer_does(status: Status) -> None:
    signature = Signature.of("m", ("image/png", "image/*"))
    replied = Answer(request(reply_topic="score-replies"), status, "application/json", b"[]")
    assert dict(replied.headers(signature))["accepts"] == b"image/png, image/*"
    assert "accepts" not in dict(Answer(request(), status, "a/b", b"").headers(signature))


def test_without_a_correlation_id_the_answer_has_none() -> None:
    answer = Answer(request(), Status.OK, "application/json", b"[]")
    assert "correlation-id" not in dict(answer.headers(SIGNATURE))


def test_an_empty_correlation_id_comes_back() -> None:
    answer = Answer(request(correlation_id=b""), Status.OK, "application/json", b"[]")
    assert dict(answer.headers(SIGNATURE))["correlation-id"] == b""


def test_a_problem_is_told_in_the_form_of_rfc_9457() -> None:
    failure = Failure("ValueError", "secret path", "trace")
    asked = request(1, 2, correlation_id=b"id-1")
    answer = problem(asked, Status.PAYLOAD_TOO_LARGE, "too large", failure)
    assert answer.content_type == "application/problem+json"
    assert answer.failure is failure
    assert json.loads(answer.body) == {
        "type": "urn:stream-scorer:problem:payload-too-large",
        "title": "Payload too large",
        "status": 413,
        "detail": "too large",
        "request": "score-requests/1/2",
        "correlation_id": "id-1",
    }


def test_what_is_not_known_is_left_out_of_a_problem() -> None:
    body = json.loads(problem_body(Status.EXPIRED, "late"))
    assert set(body) == {"type", "title", "status", "detail"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"plain", "plain"),
        ("é".encode(), "é"),
        (b"", ""),
        (b"\x00\xff", "00ff"),
        (b"\xed\xa0\x80", "eda080"),  # a lone surrogate, which UTF-8 has no place for
    ],
)
def test_opaque_bytes_are_shown_as_text_or_in_hexadecimal(value: bytes, text: str) -> None:
    assert printable(value) == text
    body: dict[str, Any] = json.loads(problem_body(Status.EXPIRED, "", correlation_id=value))
    assert body["correlation_id"] == text


@given(st.text(st.integers(0, 0x10FFFF).map(chr)))
def test_any_detail_can_be_told(detail: str) -> None:
    """Also one with lone surrogates: a plugin may quote what a caller's JSON held."""
    told = json.loads(problem_body(Status.INVALID_PAYLOAD, detail))["detail"]
    assert told == detail.encode("utf-8", "replace").decode()


def test_a_detail_is_bounded() -> None:
    assert len(problem_body(Status.INVALID_PAYLOAD, "x" * 1_000_000)) < 5_000


def test_the_last_value_of_a_header_is_found() -> None:
    headers: list[tuple[str, bytes | None]] = [("a", b"1"), ("b", b"2"), ("a", None), ("c", b"3")]
    assert last_header(headers, "b") == b"2"
    assert last_header(headers, "a") is None
    assert last_header([*headers, ("a", b"4")], "a") == b"4"
    assert last_header([], "a") is None
