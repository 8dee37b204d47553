from __future__ import annotations

from typing import NoReturn

import pytest
from confluent_kafka import Message

from stream_scorer.kafka.messages import UnreadableHeaders, read_headers, read_request
from tests.fakes import CREATE_TIME, message


class UnreadableMessage(Message):
    """A record with a header whose name is not UTF-8: the second look would crash the process."""

    def __init__(self, error: Exception) -> None:
        super().__init__(topic="score-requests", partition=1, offset=2, key=b"k", value=b"v")
        self._error = error
        self._looked = False

    def headers(self) -> NoReturn:
        assert not self._looked, "looked at twice"
        self._looked = True
        raise self._error


NOT_UTF8 = [SystemError("returned NULL"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")]


def test_a_record_becomes_a_request() -> None:
    record = message(
        *(3, 14, b"\x00\xff"),
        [("content-type", b"image/png"), ("x-a", b"1"), ("x-a", None), ("other", b"\xff")],
        key=b"\xffkey",
        timestamp=1_760_000_000_000,
    )
    found = read_request(record)
    assert (found.topic, found.partition, found.offset) == ("score-requests", 3, 14)
    assert (found.key, found.payload) == (b"\xffkey", b"\x00\xff")
    assert found.timestamp == 1_760_000_000_000
    assert found.headers == [
        *(("content-type", b"image/png"), ("x-a", b"1"), ("x-a", None), ("other", b"\xff"))
    ]
    assert found.content_type == "image/png"
    assert found.passed_through == [("x-a", b"1")]
    assert found.fault is None


def test_a_null_value_is_not_an_empty_one() -> None:
    assert read_request(message(0, 0, None)).payload is None
    assert read_request(message(0, 0, b"")).payload == b""
    assert read_request(message(0, 0, key=None)).key is None
    assert read_request(message(0, 0, key=b"")).key == b""


def test_a_record_without_headers_gets_the_configured_content_type() -> None:
    bare = Message(topic="t", partition=0, offset=0, value=b"{}", timestamp=(CREATE_TIME, 0))
    assert read_request(bare).headers == []
    assert read_request(bare).content_type is None
    assert read_request(bare, "text/csv").content_type == "text/csv"


@pytest.mark.parametrize("error", NOT_UTF8, ids=lambda error: type(error).__name__)
def test_headers_that_cannot_be_read_are_the_requests_fault(error: Exception) -> None:
    found = read_request(UnreadableMessage(error), "text/csv")
    assert found.fault == "a header's name is not UTF-8"
    assert (found.key, found.payload, found.headers) == (b"k", b"v", [])
    assert found.id == "score-requests/1/2"


@pytest.mark.parametrize("error", NOT_UTF8, ids=lambda error: type(error).__name__)
def test_headers_that_cannot_be_read_are_told_to_other_readers(error: Exception) -> None:
    with pytest.raises(UnreadableHeaders):
        read_headers(UnreadableMessage(error))


def test_a_fault_in_a_header_is_kept() -> None:
    assert read_request(message(0, 0, headers=[("deadline", b"soon")])).fault is not None
