from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_scorer.kafka.dead_letters import (
    MAX_MESSAGE_BYTES,
    MAX_TRACE_BYTES,
    dead_letter_headers,
)
from stream_scorer.protocol import Failure, Request, Status, problem
from tests.fakes import request

Headers = list[tuple[str, bytes | None]]


def errors_of(headers: Headers) -> dict[str, bytes | None]:
    """The ``__scorer.errors.*`` headers by the last part of their names; each is there once."""
    prefix = "__scorer.errors."
    found = [(name.removeprefix(prefix), value) for name, value in headers if prefix in name]
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def failed(asked: Request, failure: Failure | None = None, *, trace: bool = True) -> Headers:
    answer = problem(asked, Status.MODEL_ERROR, "no", failure)
    return dead_letter_headers(answer, trace=trace)


def test_the_requests_headers_come_first_as_they_came() -> None:
    came: Headers = [("b", b"\xff"), ("a", None), ("b", b""), ("content-type", b"image/png")]
    assert failed(request(headers=came))[: len(came)] == came


def test_what_went_wrong_stands_beside_it() -> None:
    asked = request(3, 14, timestamp=1_760_000_000_000)
    assert errors_of(failed(asked, Failure("builtins.ValueError", "é", "trace"))) == {
        "topic": b"score-requests",
        "partition": b"3",
        "offset": b"14",
        "timestamp": b"1760000000000",
        "status": b"model-error",
        "attempts": b"1",
        "exception": b"builtins.ValueError",
        "message": "é".encode(),
        "stacktrace": b"trace",
    }


def test_without_an_exception_there_is_none_to_tell() -> None:
    assert {"exception", "message", "stacktrace"}.isdisjoint(errors_of(failed(request())))


def test_the_trace_is_what_goes_where_the_record_is_too_large() -> None:
    found = errors_of(failed(request(), Failure("a.B", "c", "trace"), trace=False))
    assert "stacktrace" not in found
    assert (found["exception"], found["message"]) == (b"a.B", b"c")


def test_a_replayed_request_that_fails_again_has_one_set_of_errors() -> None:
    headers: Headers = [("x-a", b"1")]
    for attempt in range(1, 4):
        headers = failed(request(1, attempt, headers=headers), Failure("a.B", str(attempt), ""))
        assert headers[0] == ("x-a", b"1")
        found = errors_of(headers)
        assert found["attempts"] == b"%d" % attempt
        assert found["offset"] == found["message"] == b"%d" % attempt


def test_what_no_longer_holds_is_not_kept_of_an_earlier_failure() -> None:
    headers = failed(request(), Failure("a.B", "c", "trace"))
    assert "stacktrace" not in errors_of(failed(request(headers=headers)))


@pytest.mark.parametrize("value", [None, b"", b"many", b"-1", b"1.5", b"\xff", b"9" * 5000])
def test_attempts_that_are_no_number_are_not_counted(value: bytes | None) -> None:
    headers: Headers = [("__scorer.errors.attempts", value)]
    assert errors_of(failed(request(headers=headers)))["attempts"] == b"1"


def test_a_long_trace_keeps_its_end() -> None:
    trace = "first line\n" + "x" * 10_000 + "\nlast line: é"
    found = errors_of(failed(request(), Failure("a.B", "c", trace)))["stacktrace"] or b""
    assert len(found) <= MAX_TRACE_BYTES == 4096
    assert found.decode().endswith("last line: é")


def test_a_long_message_keeps_its_beginning() -> None:
    found = errors_of(failed(request(), Failure("a.B", "begin " + "x" * 10_000, "")))["message"]
    assert found is not None
    assert len(found) <= MAX_MESSAGE_BYTES
    assert found.startswith(b"begin ")


@given(st.text(st.integers(0, 0x10FFFF).map(chr), max_size=20), st.integers(0, 1500))
def test_any_text_becomes_utf8_within_its_bounds(text: str, repeated: int) -> None:
    long = text * repeated
    found = errors_of(failed(request(), Failure(text, long, long)))
    for name, bound in (("message", MAX_MESSAGE_BYTES), ("stacktrace", MAX_TRACE_BYTES)):
        value = found[name]
        assert value is not None
        assert len(value) <= bound
        value.decode()
    assert (found["exception"] or b"").decode() == text.encode("utf-8", "replace").decode()


def test_a_real_trace_says_where() -> None:
    def recurse(depth: int) -> None:
        if depth == 0:
            raise ValueError("at the bottom")
        recurse(depth - 1)

    try:
        recurse(400)
    except ValueError as error:
        trace = "".join(traceback.format_exception(error))
    found = errors_of(failed(request(), Failure("builtins.ValueError", "", trace)))
    assert (found["stacktrace"] or b"").rstrip().endswith(b"ValueError: at the bottom")
