"""A call through Kafka as the HTTP side sees it: the reply, and the ways in which there is none.

The text of each exception is what the caller reads, so it names nothing internal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from http_facade.metrics import Metrics
from stream_scorer.protocol import Header

PREDICTIONS: Final = "/api/predictions/"
"""The path of answers asked for later; what follows it is the request's correlation id."""

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


class Place(NamedTuple):
    """Where a reply will be found, by any process: from ``offset`` on in the replies topic.

    ``until`` is the request's deadline, in ms since the epoch.
    """

    correlation_id: str
    partition: int
    offset: int
    until: int

    @property
    def uri(self) -> str:
        """The path and query under which the reply is asked for."""
        query = f"partition={self.partition}&offset={self.offset}&until={self.until}"
        return f"{PREDICTIONS}{self.correlation_id}?{query}"


class Unauthorized(Exception):
    """The request has no key, or one that is not known."""


class NotReady(Exception):
    """No request can be sent: the broker is not there, or the replies are not assigned yet."""


class Overloaded(Exception):
    """As many requests or bytes as may wait are waiting, or the producer's queue is full."""


class AnswerDropped(Exception):
    """The request was scored, but too many bytes of answers wait for their readers already."""


class RequestTooLarge(Exception):
    """Kafka refuses the request for its size."""


class DeliveryFailed(Exception):
    """The request did not reach the requests topic; the text holds the ``KafkaError``'s name."""


class ReplyLost(Exception):
    """The replies topic lost records that were not read yet. The request may have been scored."""


class UnknownStatus(Exception):
    """The reply has a status that is not in the wire contract of this version."""


class ReplyTimeout(Exception):
    """No reply in time. The request may still be scored; a late reply will be at ``place``."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


class NoSuchPrediction(Exception):
    """Nothing was ever expected at this place."""


class PredictionGone(Exception):
    """The deadline has passed, and there is no reply: none came, or it is no longer kept."""


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

    @property
    def metrics(self) -> Metrics:
        """Where the client counts, and the rest of its process too."""

    def start(self) -> None:
        """Begin to connect; called on the running event loop, returns at once."""

    async def close(self) -> None:
        """Stop, and fail what still waits."""

    async def call(
        self,
        payload: bytes,
        headers: Sequence[Header],
        timeout: float,
        sent: Callable[[], None] | None = None,
    ) -> Reply:
        """Send one request and wait for its reply, ``timeout`` seconds at most.

        ``sent`` is called when the payload is no longer held here.

        Raises:
            NotReady: nothing was sent.
            Overloaded: nothing was sent.
            RequestTooLarge: Kafka takes no record of this size.
            DeliveryFailed: the request did not reach its topic.
            ReplyLost: the reply is gone.
            ReplyTimeout: no reply in time.
        """

    async def submit(
        self,
        payload: bytes,
        headers: Sequence[Header],
        lifetime: float,
        wait: float,
        timeout: float,
        sent: Callable[[], None] | None = None,
    ) -> Reply | Place:
        """Send one request that has ``lifetime`` seconds, and wait for its reply for ``wait``.

        It is to be stored within ``timeout`` seconds.

        Returns:
            The reply, or where it will be. The request is then safe in Kafka.

        Raises:
            NotReady: nothing was sent.
            Overloaded: nothing was sent.
            RequestTooLarge: Kafka takes no record of this size.
            DeliveryFailed: the request did not reach its topic.
            ReplyLost: the reply is gone.
        """

    async def find(self, place: Place) -> Reply | Place:
        """Look for a reply to a request of any process, within bounds.

        Returns:
            The reply, or from where on to look next time.

        Raises:
            NoSuchPrediction: there is no such place.
            PredictionGone: there is no reply, and none is to be expected.
            NotReady: the broker is not there.
            Overloaded: too many look for replies.
        """

    def snapshot(self) -> Mapping[str, object]:
        """What the client is doing, from what it knows already."""
