"""A call through Kafka as the HTTP side sees it: the reply, and the ways in which there is none.

The text of each exception is what the caller reads, so it names nothing internal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from stream_scorer.protocol import Header

_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")
_MOST_CHARACTERS: Final = 1024


def header_text(text: str) -> str:
    """A reply's header as it may be passed on: whoever may write replies may write anything."""
    return _UNPRINTABLE.sub("?", text[:_MOST_CHARACTERS])


@dataclass(frozen=True, slots=True)
class Reply:
    """A worker's answer: ``body`` as it came, the headers as text, ``None`` where not sent."""

    body: bytes
    status: str | None = None
    content_type: str | None = None
    model: str | None = None
    server_timing: str | None = None
    accepts: str | None = None


class NotReady(Exception):
    """No request can be sent: the broker is not there, or the replies are not assigned yet."""


class Overloaded(Exception):
    """As many requests as may wait are waiting, or the producer's queue is full."""


class RequestTooLarge(Exception):
    """Kafka refuses the request for its size."""


class DeliveryFailed(Exception):
    """The request did not reach the requests topic; the text holds the ``KafkaError``'s name."""


class ReplyLost(Exception):
    """The replies topic lost records that were not read yet. The request may have been scored."""


class UnknownStatus(Exception):
    """The reply has a status that is not in the wire contract of this version."""


class ReplyTimeout(Exception):
    """No reply in time. The request may still be scored.

    ``correlation_id`` is what a late answer can be found by.
    """

    def __init__(self, message: str, correlation_id: bytes) -> None:
        super().__init__(message)
        self.correlation_id = correlation_id


class Caller(Protocol):
    """What the resources need of a client; ``RequestReplyClient`` is the real one."""

    @property
    def ready(self) -> bool:
        """Whether a request sent now can be answered."""

    @property
    def alive(self) -> bool:
        """False once the client has stopped working and only a new process helps."""

    @property
    def model(self) -> str | None:
        """The last answer's ``model`` header, ``None`` before the first answer."""

    @property
    def accepts(self) -> str | None:
        """The last answer's ``accepts`` header, ``None`` before the first answer."""

    def start(self) -> None:
        """Begin to connect; called on the running event loop, returns at once."""

    async def close(self) -> None:
        """Stop, and fail what still waits."""

    async def call(self, payload: bytes, headers: Sequence[Header], timeout: float) -> Reply:
        """Send one request and wait for its reply, ``timeout`` seconds at most.

        Raises:
            NotReady: nothing was sent.
            Overloaded: nothing was sent.
            RequestTooLarge: Kafka takes no record of this size.
            DeliveryFailed: the request did not reach its topic.
            ReplyLost: the reply is gone.
            ReplyTimeout: no reply in time.
        """

    def snapshot(self) -> Mapping[str, object]:
        """What the client is doing, from what it knows already."""
