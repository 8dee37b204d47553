"""The wire contract: what a request, an answer and a problem look like on a topic.

Everything that speaks to the scorer, in this project or another language, agrees on this file and
on nothing else. ``docs/protocol.md`` says the same in prose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, cast

import orjson

Header = tuple[str, bytes]

CONTENT_TYPE: Final = "content-type"
ACCEPT: Final = "accept"
CORRELATION_ID: Final = "correlation-id"
REPLY_TOPIC: Final = "reply-topic"
REPLY_PARTITION: Final = "reply-partition"
DEADLINE: Final = "deadline"
STATUS: Final = "status"
REQUEST: Final = "request"
MODEL: Final = "model"
ACCEPTS: Final = "accepts"
SERVER_TIMING: Final = "server-timing"

PROBLEM_JSON: Final = "application/problem+json"
PROBLEM_TYPE_PREFIX: Final = "urn:stream-scorer:problem:"
ERROR_HEADER_PREFIX: Final = "__scorer.errors."

_MAX_DETAIL: Final = 4096
"""Characters of a problem's detail; a plugin may quote a whole payload."""

_REQUEST_HEADERS: Final = frozenset(
    {CONTENT_TYPE, ACCEPT, CORRELATION_ID, REPLY_TOPIC, REPLY_PARTITION, DEADLINE}
)
_TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate"})


class DeadLetter(Enum):
    """When an answer's request is copied to the dead-letter topic as well."""

    NEVER = "never"
    UNLESS_REPLIED = "unless the caller asked for a reply"
    ALWAYS = "always"


# PERF: looked up through the class, a member of an Enum costs more than all of ``is_dead_letter``.
_NEVER: Final = DeadLetter.NEVER


class Status(Enum):
    """How a request ended: the one table of statuses.

    The value is the ``status`` header, ``header`` the same in bytes. ``http`` is the HTTP status
    and the ``status`` of the problem body; ``title`` is the problem's title; ``dead_letter`` says
    when the request is kept aside.
    """

    header: bytes
    http: int
    title: str
    dead_letter: DeadLetter

    def __new__(cls, value: str, http: int, title: str, dead_letter: DeadLetter) -> Status:
        member = object.__new__(cls)
        member._value_ = value
        member.header = value.encode()
        member.http = http
        member.title = title
        member.dead_letter = dead_letter
        return member

    OK = ("ok", 200, "Scored", DeadLetter.NEVER)
    INVALID_PAYLOAD = ("invalid-payload", 400, "Invalid payload", DeadLetter.UNLESS_REPLIED)
    INVALID_REQUEST = ("invalid-request", 400, "Invalid request", DeadLetter.ALWAYS)
    UNSUPPORTED_CONTENT_TYPE = (
        "unsupported-content-type",
        415,
        "Unsupported content type",
        DeadLetter.UNLESS_REPLIED,
    )
    PAYLOAD_TOO_LARGE = ("payload-too-large", 413, "Payload too large", DeadLetter.UNLESS_REPLIED)
    EXPIRED = ("expired", 504, "Deadline passed", DeadLetter.NEVER)
    MODEL_ERROR = ("model-error", 500, "Model error", DeadLetter.ALWAYS)


@dataclass(slots=True)
class Request:
    """One request as it was consumed.

    ``payload`` is ``None`` for a null record value. ``timestamp`` is the record's time in ms since
    the epoch. ``fault`` says why the headers do not follow the contract, and is ``None`` when they
    do; ``headers`` then holds them as they came, for a dead letter.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    payload: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp: int = 0
    content_type: str | None = None
    accept: str | None = None
    correlation_id: bytes | None = None
    reply_topic: str | None = None
    reply_partition: int | None = None
    deadline: int | None = None
    passed_through: Sequence[Header] = ()
    fault: str | None = None

    @classmethod
    def local(cls, payload: bytes, content_type: str, accept: str | None = None) -> Request:
        """A request that came from no topic, to try a plugin and a model with."""
        return cls("local", 0, 0, None, payload, [], content_type=content_type, accept=accept)

    @property
    def id(self) -> str:
        """Where the request stands: ``topic/partition/offset``."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    def read_headers(self, default_content_type: str | None = None) -> None:
        """Fill the fields from ``headers``; the last header of a name wins.

        What does not follow the contract is told by ``fault``, never raised: such a request gets
        its answer too, at its reply address unless that is what is wrong. A header with a null
        value counts as not sent.
        """
        sent = dict(self.headers)
        if None in sent.values():
            sent = {name: value for name, value in self.headers if value is not None}
        # PERF: once a request, and most have none but these.
        if not _REQUEST_HEADERS.issuperset(sent):
            self.passed_through = [
                (name, value)
                for name, value in self.headers
                if value is not None and (name.startswith("x-") or name in _TRACE_HEADERS)
            ]
        address_fault = False
        for name, value in cast("dict[str, bytes]", sent).items():
            try:
                if name == CONTENT_TYPE:
                    self.content_type = value.decode()
                elif name == CORRELATION_ID:
                    self.correlation_id = value
                elif name == REPLY_TOPIC:
                    self.reply_topic = value.decode()
                elif name == REPLY_PARTITION:
                    self.reply_partition = _decimal(name, value)
                elif name == DEADLINE:
                    self.deadline = _decimal(name, value)
                elif name == ACCEPT:
                    self.accept = value.decode()
            except ValueError as error:
                unreadable = isinstance(error, UnicodeDecodeError)
                self.fault = f"header {name!r} is not UTF-8" if unreadable else str(error)
                address_fault = address_fault or name in (REPLY_TOPIC, REPLY_PARTITION)
        if address_fault:
            self.reply_topic = self.reply_partition = None
        if self.content_type is None:
            self.content_type = default_content_type


def _decimal(name: str, value: bytes) -> int:
    # int() also takes signs, spaces and underscores; the contract says decimal text.
    if not value.isdigit() or len(value) > 18:
        raise ValueError(f"header {name!r} is not a decimal number")
    return int(value)


@dataclass(frozen=True, slots=True)
class Signature:
    """What each answer of a worker tells of it, as headers that are made once.

    ``accepts`` goes only to who asked for a reply: whoever reads all results needs it least, and
    every header costs.
    """

    model: Header
    accepts: Header

    @classmethod
    def of(cls, model: str, content_types: Iterable[str]) -> Signature:
        """That of a worker with this model, whose plugin takes these media ranges."""
        return cls((MODEL, model.encode()), (ACCEPTS, ", ".join(content_types).encode()))


@dataclass(slots=True)
class Failure:
    """What went wrong inside the scorer: for the log and the dead letter, never for the caller."""

    exception: str
    message: str
    stacktrace: str


def stage_times(decode: float = 0.0, predict: float = 0.0, encode: float = 0.0) -> bytes:
    """The part of ``server-timing`` that is the same for all requests scored together; in ms."""
    return b"decode;dur=%.3f, predict;dur=%.3f, encode;dur=%.3f" % (decode, predict, encode)


_NO_STAGES: Final = stage_times()


@dataclass(slots=True)
class Answer:
    """What one request ended in: a result (``Status.OK``) or a problem.

    ``queue`` is how long the request waited until it was taken, in ms, by the clocks of two
    machines; ``stages`` what ``stage_times`` says of the rest.
    """

    request: Request
    status: Status
    content_type: str
    body: bytes
    stages: bytes = _NO_STAGES
    failure: Failure | None = None
    queue: int = 0

    def headers(self, signature: Signature) -> list[Header]:
        """The answer's headers, with those of the worker that gives it."""
        request = self.request
        headers: list[Header] = [
            (CONTENT_TYPE, self.content_type.encode()),
            (STATUS, self.status.header),
            (REQUEST, request.id.encode()),
            signature.model,
            (SERVER_TIMING, self.server_timing),
        ]
        if request.reply_topic is not None:
            headers.append(signature.accepts)
        if request.correlation_id is not None:
            headers.append((CORRELATION_ID, request.correlation_id))
        headers += request.passed_through
        return headers

    @property
    def server_timing(self) -> bytes:
        """The ``server-timing`` header."""
        return b"queue;dur=%d, %b" % (self.queue, self.stages)

    @property
    def is_dead_letter(self) -> bool:
        """Whether the request belongs on the dead-letter topic as well."""
        policy = self.status.dead_letter
        if policy is _NEVER:
            return False
        return policy is DeadLetter.ALWAYS or self.request.reply_topic is None


def problem(
    request: Request, status: Status, detail: str, failure: Failure | None = None
) -> Answer:
    """Answer a request with a problem; ``detail`` is for the caller and names nothing internal."""
    body = problem_body(status, detail, request=request.id, correlation_id=request.correlation_id)
    return Answer(request, status, PROBLEM_JSON, body, failure=failure)


def problem_body(
    status: Status,
    detail: str,
    *,
    request: str | None = None,
    correlation_id: bytes | None = None,
) -> bytes:
    """The RFC 9457 body of a problem: the same bytes on a topic and over HTTP."""
    members: dict[str, str | int] = {
        "type": PROBLEM_TYPE_PREFIX + status.value,
        "title": status.title,
        "status": status.http,
        # A plugin may quote what a caller's JSON held: lone surrogates, which no UTF-8 can carry.
        "detail": detail[:_MAX_DETAIL].encode("utf-8", "replace").decode(),
    }
    if request is not None:
        members["request"] = request
    if correlation_id is not None:
        members["correlation_id"] = printable(correlation_id)
    return orjson.dumps(members)


def printable(value: bytes) -> str:
    """Opaque bytes as text: as UTF-8 where they are, else in hexadecimal."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def last_header(headers: Iterable[tuple[str, bytes | None]], name: str) -> bytes | None:
    """The last value of a header, ``None`` where it is not there."""
    found = None
    for key, value in headers:
        if key == name:
            found = value
    return found
