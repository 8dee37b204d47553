"""The dead letter: a request kept as it came, with what went wrong beside it."""

from __future__ import annotations

from typing import Final

from stream_scorer.protocol import ERROR_HEADER_PREFIX, Answer, Request, last_header

MAX_TRACE_BYTES: Final = 4096
MAX_MESSAGE_BYTES: Final = 1024

_ATTEMPTS: Final = ERROR_HEADER_PREFIX + "attempts"


def dead_letter_headers(answer: Answer, *, trace: bool) -> list[tuple[str, bytes | None]]:
    """The request's own headers, then ``__scorer.errors.*``, which replace those of a replay.

    Args:
        answer: the problem that the request was answered with.
        trace: whether to include the stack trace, which is left out where the record would be
            too large with it.
    """
    request, failure = answer.request, answer.failure
    kept = [item for item in request.headers if not item[0].startswith(ERROR_HEADER_PREFIX)]
    errors = {
        "topic": request.topic,
        "partition": str(request.partition),
        "offset": str(request.offset),
        "timestamp": str(request.timestamp),
        "status": answer.status.value,
        "attempts": str(_earlier_attempts(request) + 1),
    }
    if failure is not None:
        errors["exception"] = failure.exception
        errors["message"] = _cut(failure.message, MAX_MESSAGE_BYTES)
        if trace:
            # The end of a trace says where and what.
            errors["stacktrace"] = _cut(failure.stacktrace, MAX_TRACE_BYTES, keep_end=True)
    return [
        *kept,
        *(
            (ERROR_HEADER_PREFIX + name, text.encode("utf-8", "replace"))
            for name, text in errors.items()
        ),
    ]


def _earlier_attempts(request: Request) -> int:
    value = last_header(request.headers, _ATTEMPTS)
    return int(value) if value is not None and value.isdigit() and len(value) < 10 else 0


def _cut(text: str, size: int, *, keep_end: bool = False) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= size:
        return text
    return (data[-size:] if keep_end else data[:size]).decode("utf-8", "ignore")
