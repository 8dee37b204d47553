"""Reading a consumed record, whatever somebody put into it."""

from __future__ import annotations

from operator import methodcaller
from typing import Final, cast

from confluent_kafka import Message

from stream_scorer.protocol import Request

_call_headers: Final = methodcaller("headers")


class UnreadableHeaders(Exception):
    """A header's name is not UTF-8."""


def read_headers(message: Message) -> list[tuple[str, bytes | None]]:
    """The record's headers; to be called once for each message.

    Where a header's name is not UTF-8, the client returns a broken list with an exception set
    (confluent-kafka 2.16.1). Python's checked calls make a ``SystemError`` of that. The calls that
    CPython specialises once they are hot are not checked: they hand out the broken list, and
    looking into it crashes the process. So does a second call for the same message. A
    ``methodcaller`` is always checked.

    Raises:
        UnreadableHeaders: a header's name is not UTF-8.
    """
    try:
        headers = _call_headers(message)
    except (SystemError, UnicodeError):
        raise UnreadableHeaders("a header's name is not UTF-8") from None
    return cast("list[tuple[str, bytes | None]]", headers or [])


def read_request(message: Message, default_content_type: str | None = None) -> Request:
    """Turn a record into a request; one whose headers cannot be read gets a ``fault``."""
    fault = None
    try:
        headers = read_headers(message)
    except UnreadableHeaders as error:
        headers = []
        fault = str(error)
    request = Request(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        message.key(),
        message.value(),
        headers,
        message.timestamp()[1],
    )
    request.read_headers(default_content_type)
    if fault is not None:
        request.fault = fault
    return request
