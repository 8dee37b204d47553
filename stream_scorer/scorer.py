"""Requests in, answers out: decode each, predict in batches, encode each.

This is where a plugin's code runs for a request, so this is where any exception may be caught: one
bad request must harm no other. Nothing here knows of Kafka.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence, Set
from time import perf_counter
from typing import Any, Final, Literal, Protocol

from stream_scorer import media_types
from stream_scorer.failpoints import failpoint
from stream_scorer.plugins import InvalidPayload, Plugin
from stream_scorer.protocol import Answer, Failure, Request, Status, problem, stage_times

_log = logging.getLogger(__name__)

MAX_CULPRITS: Final = 8
"""Failures in one batch after which the rest of it is given up: the model is broken."""

# PERF: looked up through the class, a member of an Enum costs as much as a small function.
_OK: Final = Status.OK
_NOT_PREDICTIONS: Final = (str, bytes, bytearray, Mapping, Set)


class Observer(Protocol):
    """Whom a scorer tells how it goes; called in the thread that scores."""

    def stage(self, name: Literal["decode", "predict", "encode"], seconds: float) -> None:
        """How long ``decode`` took for a call of ``score``, or the others for a batch of it."""

    def batch(self, size: int) -> None:
        """How many instances go to ``predict``."""


class Scorer:
    """Scores with one plugin and one model; used by one thread at a time.

    Args:
        plugin: what decodes, predicts and encodes.
        model: what the plugin's ``load_model`` returned.
        payload_bytes: the largest payload taken.
        result_bytes: the largest encoded result given.
        max_batch_size: the most instances one ``predict`` gets, unless the plugin sets its own.
        observer: told of stages and batches.
    """

    def __init__(
        self,
        plugin: Plugin[Any, Any, Any],
        model: Any,
        *,
        payload_bytes: int,
        result_bytes: int,
        max_batch_size: int,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._blamed: BaseException | None = None
        self._media_type = ""
        self._plugin = plugin
        self._model = model
        self._payload_bytes = payload_bytes
        self._result_bytes = result_bytes
        self._max_batch_size = plugin.max_batch_size or max_batch_size

    def score(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer every request, in order; never raises for a bad one."""
        instances: list[Any] = []
        began = perf_counter()
        refusals = [self._decode(request, instances) for request in requests]
        decode_ms = self._told("decode", began)
        failpoint("after_decode")
        decoded = [
            request for request, refusal in zip(requests, refusals, strict=True) if refusal is None
        ]
        scored: list[Answer] = []
        for start in range(0, len(decoded), self._max_batch_size):
            batch = slice(start, start + self._max_batch_size)
            scored += self._score_batch(decoded[batch], instances[batch], decode_ms)
        rest = iter(scored)
        return [refusal or next(rest) for refusal in refusals]

    def _decode(self, request: Request, instances: list[Any]) -> Answer | None:
        """Append the request's instance, or say why there is none."""
        payload, content_type = request.payload, request.content_type
        accepted = self._plugin.content_types
        if content_type is None:
            return problem(
                request,
                Status.UNSUPPORTED_CONTENT_TYPE,
                f"the content-type header is missing; accepted: {', '.join(accepted)}",
            )
        if not media_types.accepts(accepted, content_type):
            return problem(
                request,
                Status.UNSUPPORTED_CONTENT_TYPE,
                f"{_shortened(content_type)!r} is not accepted; accepted: {', '.join(accepted)}",
            )
        if not payload:
            return problem(request, Status.INVALID_PAYLOAD, "the payload is empty")
        if len(payload) > self._payload_bytes:
            return problem(
                request,
                Status.PAYLOAD_TOO_LARGE,
                f"the payload has {len(payload)} bytes, more than {self._payload_bytes}",
            )
        try:
            instances.append(self._plugin.decode(payload, content_type))
        except InvalidPayload as error:
            return problem(request, Status.INVALID_PAYLOAD, _text(error), _failure(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _log.warning("request %s: decode raised", request.id, exc_info=error)
            detail = f"the payload cannot be decoded ({type(error).__name__})"
            return problem(request, Status.INVALID_PAYLOAD, detail, _failure(error))
        return None

    def _score_batch(
        self, requests: Sequence[Request], instances: Sequence[Any], decode_ms: float
    ) -> list[Answer]:
        if self._observer is not None:
            self._observer.batch(len(instances))
        began = perf_counter()
        predictions = self._predict(instances)
        predict_ms = self._told("predict", began)
        failpoint("after_predict")
        began = perf_counter()
        answers = [
            self._blame(request, prediction)
            if isinstance(prediction, BaseException)
            else self._encode(request, prediction)
            for request, prediction in zip(requests, predictions, strict=True)
        ]
        stages = stage_times(decode_ms, predict_ms, self._told("encode", began))
        for answer in answers:
            answer.stages = stages
        # An error's traceback holds the batch, and the batch's frame the error.
        for prediction in predictions:
            if isinstance(prediction, BaseException):
                prediction.__traceback__ = None
        self._blamed = None
        return answers

    def _told(self, stage: Literal["decode", "predict", "encode"], began: float) -> float:
        """Tell the observer of a stage that ends now; how long it took, in ms."""
        seconds = perf_counter() - began
        if self._observer is not None:
            self._observer.stage(stage, seconds)
        return seconds * 1000

    def _predict(self, instances: Sequence[Any]) -> list[Any]:
        """One prediction for each instance, or the exception that it raised alone."""
        outcomes: list[Any] = [None] * len(instances)
        culprits = 0
        broken: BaseException | None = None
        ranges = [(0, len(instances))]
        while ranges:
            start, stop = ranges.pop()
            try:
                outcomes[start:stop] = self._call(instances[start:stop])
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if stop - start == 1:
                    outcomes[start] = error
                    # A payload that the plugin refuses this late says nothing about the model.
                    if not isinstance(error, InvalidPayload):
                        culprits += 1
                        broken = error
                elif culprits >= MAX_CULPRITS:
                    outcomes[start:stop] = [broken] * (stop - start)
                else:
                    middle = (start + stop) // 2
                    ranges += [(middle, stop), (start, middle)]
        return outcomes

    def _call(self, instances: Sequence[Any]) -> Sequence[Any]:
        predictions = self._plugin.predict(self._model, instances)
        # Iterated, these and a data frame give keys, letters or names, in any number and order.
        if isinstance(predictions, _NOT_PREDICTIONS) or hasattr(predictions, "columns"):
            raise TypeError(f"predict returned a {type(predictions).__name__}, not a sequence")
        # First of all, since it refuses a generator, which may have no end.
        length = len(predictions)
        outcomes = list(predictions)
        if not length == len(outcomes) == len(instances):
            raise ValueError(
                f"predict returned {len(outcomes)} predictions for {len(instances)} instances"
            )
        return outcomes

    def _blame(self, request: Request, error: BaseException) -> Answer:
        if isinstance(error, InvalidPayload):
            return problem(request, Status.INVALID_PAYLOAD, _text(error), _failure(error))
        # Of a broken model every request of the batch has the same error: its trace once.
        trace = None if error is self._blamed else error
        self._blamed = error
        _log.error("request %s: predict raised", request.id, exc_info=trace)
        detail = f"the model cannot score this payload ({type(error).__name__})"
        return problem(request, Status.MODEL_ERROR, detail, _failure(error))

    def _encode(self, request: Request, prediction: Any) -> Answer:
        try:
            body, content_type = self._plugin.encode(prediction, request.accept)
            # What is neither bytes nor a media type must not get as far as the producer.
            if type(body) is not bytes:
                body = bytes(memoryview(body))
            if content_type != self._media_type:
                _check_media_type(content_type)
                self._media_type = content_type
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _log.error("request %s: encode raised", request.id, exc_info=error)
            detail = f"the prediction cannot be encoded ({type(error).__name__})"
            return problem(request, Status.MODEL_ERROR, detail, _failure(error))
        if len(body) > self._result_bytes:
            detail = f"the result has {len(body)} bytes, more than {self._result_bytes}"
            return problem(request, Status.MODEL_ERROR, detail)
        return Answer(request, _OK, content_type, body)


def _check_media_type(text: str) -> None:
    if "/" not in text or not (text.isascii() and text.isprintable()):
        raise ValueError(f"{text!r} is not a media type")


def _shortened(text: str) -> str:
    return text if len(text) <= media_types.LONGEST else f"{text[: media_types.LONGEST]}…"


def _text(error: InvalidPayload) -> str:
    try:
        return str(error)
    except Exception:
        return "the payload is refused"


def _failure(error: BaseException) -> Failure:
    kind = type(error)
    return Failure(
        exception=f"{kind.__module__}.{kind.__qualname__}",
        # format_exception_only() survives an exception whose __str__ raises.
        message="".join(traceback.format_exception_only(error)).strip(),
        stacktrace="".join(traceback.format_exception(error)),
    )
