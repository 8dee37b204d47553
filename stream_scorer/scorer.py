"""Requests in, answers out: decode each, predict in batches, encode each.

This is where a plugin's code runs for a request, so this is where any exception may be caught: one
bad request must harm no other. Nothing here knows of Kafka.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Any, Final

from falcon import mediatypes

from stream_scorer.plugins import InvalidPayload, Plugin
from stream_scorer.protocol import Answer, Failure, Request, Status, Timing, problem

_log = logging.getLogger(__name__)

MAX_CULPRITS: Final = 8
"""Failures in one batch after which the rest of it is given up: the model is broken."""

_PLUGIN_FAULTS: Final = (Exception, SystemExit)


@dataclass(slots=True)
class _Decoded:
    request: Request
    instance: Any
    timing: Timing


class Scorer:
    """Scores with one plugin and one model; used by one thread at a time.

    Args:
        plugin: what decodes, predicts and encodes.
        model: what the plugin's ``load_model`` returned.
        payload_bytes: the largest payload taken.
        result_bytes: the largest encoded result given.
        max_batch_size: the most instances one ``predict`` gets, unless the plugin sets its own.
    """

    def __init__(
        self,
        plugin: Plugin[Any, Any, Any],
        model: Any,
        *,
        payload_bytes: int,
        result_bytes: int,
        max_batch_size: int,
    ) -> None:
        self._plugin = plugin
        self._model = model
        self._payload_bytes = payload_bytes
        self._result_bytes = result_bytes
        self._max_batch_size = plugin.max_batch_size or max_batch_size

    def score(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer every request, in order; never raises for a bad one."""
        answers = [self._decode(request) for request in requests]
        decoded = [item for item in answers if isinstance(item, _Decoded)]
        scored: list[Answer] = []
        for start in range(0, len(decoded), self._max_batch_size):
            scored += self._score_batch(decoded[start : start + self._max_batch_size])
        rest = iter(scored)
        return [item if isinstance(item, Answer) else next(rest) for item in answers]

    def _decode(self, request: Request) -> _Decoded | Answer:
        payload, content_type = request.payload, request.content_type
        accepted = self._plugin.content_types
        if content_type is None:
            return problem(
                request,
                Status.UNSUPPORTED_CONTENT_TYPE,
                f"the content-type header is missing; accepted: {', '.join(accepted)}",
            )
        if not _accepts(accepted, content_type):
            return problem(
                request,
                Status.UNSUPPORTED_CONTENT_TYPE,
                f"{content_type!r} is not accepted; accepted: {', '.join(accepted)}",
            )
        if not payload:
            return problem(request, Status.INVALID_PAYLOAD, "the payload is empty")
        if len(payload) > self._payload_bytes:
            return problem(
                request,
                Status.PAYLOAD_TOO_LARGE,
                f"the payload has {len(payload)} bytes, more than {self._payload_bytes}",
            )
        began = perf_counter()
        try:
            instance = self._plugin.decode(payload, content_type)
        except InvalidPayload as error:
            return problem(request, Status.INVALID_PAYLOAD, str(error), _failure(error))
        except _PLUGIN_FAULTS as error:
            _log.warning("request %s: decode raised", request.id, exc_info=error)
            detail = f"the payload cannot be decoded ({type(error).__name__})"
            return problem(request, Status.INVALID_PAYLOAD, detail, _failure(error))
        return _Decoded(request, instance, Timing(decode=(perf_counter() - began) * 1000))

    def _score_batch(self, batch: Sequence[_Decoded]) -> list[Answer]:
        began = perf_counter()
        predictions = self._predict([item.instance for item in batch])
        elapsed = (perf_counter() - began) * 1000
        answers = []
        for item, prediction in zip(batch, predictions, strict=True):
            item.timing.predict = elapsed
            if isinstance(prediction, BaseException):
                answer = self._blame(item.request, prediction)
            else:
                answer = self._encode(item, prediction)
            answer.timing = item.timing
            answers.append(answer)
        return answers

    def _predict(self, instances: Sequence[Any]) -> list[Any]:
        """One prediction for each instance, or the exception that it raised alone."""
        outcomes: list[Any] = [None] * len(instances)
        culprits = 0
        ranges = [(0, len(instances))]
        while ranges:
            start, stop = ranges.pop()
            try:
                outcomes[start:stop] = self._call(instances[start:stop])
            except _PLUGIN_FAULTS as error:
                if culprits >= MAX_CULPRITS:
                    outcomes[start:stop] = [error] * (stop - start)
                elif stop - start == 1:
                    outcomes[start] = error
                    # A payload that the plugin refuses this late says nothing about the model.
                    culprits += not isinstance(error, InvalidPayload)
                else:
                    middle = (start + stop) // 2
                    ranges += [(middle, stop), (start, middle)]
        return outcomes

    def _call(self, instances: Sequence[Any]) -> Sequence[Any]:
        predictions = self._plugin.predict(self._model, instances)
        if len(predictions) != len(instances):
            raise ValueError(
                f"predict returned {len(predictions)} predictions for {len(instances)} instances"
            )
        return predictions

    def _blame(self, request: Request, error: BaseException) -> Answer:
        if isinstance(error, InvalidPayload):
            return problem(request, Status.INVALID_PAYLOAD, str(error), _failure(error))
        _log.error("request %s: predict raised", request.id, exc_info=error)
        detail = f"the model cannot score this payload ({type(error).__name__})"
        return problem(request, Status.MODEL_ERROR, detail, _failure(error))

    def _encode(self, item: _Decoded, prediction: Any) -> Answer:
        request = item.request
        began = perf_counter()
        try:
            body, content_type = self._plugin.encode(prediction, request.accept)
            # What is neither bytes nor a media type must not get as far as the producer.
            body = bytes(memoryview(body))
            content_type.encode("ascii")
        except _PLUGIN_FAULTS as error:
            _log.error("request %s: encode raised", request.id, exc_info=error)
            detail = f"the prediction cannot be encoded ({type(error).__name__})"
            return problem(request, Status.MODEL_ERROR, detail, _failure(error))
        if len(body) > self._result_bytes:
            detail = f"the result has {len(body)} bytes, more than {self._result_bytes}"
            return problem(request, Status.MODEL_ERROR, detail)
        item.timing.encode = (perf_counter() - began) * 1000
        return Answer(request, Status.OK, content_type, body)


@lru_cache(maxsize=1024)
def _accepts(media_ranges: tuple[str, ...], content_type: str) -> bool:
    try:
        return mediatypes.quality(content_type, ", ".join(media_ranges)) > 0
    except ValueError:
        return False


def _failure(error: BaseException) -> Failure:
    kind = type(error)
    return Failure(
        exception=f"{kind.__module__}.{kind.__qualname__}",
        # format_exception_only() survives an exception whose __str__ raises.
        message="".join(traceback.format_exception_only(error)).strip(),
        stacktrace="".join(traceback.format_exception(error)),
    )
