from __future__ import annotations

import gc
import json
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_scorer.plugins import InvalidPayload
from stream_scorer.protocol import Answer, Request, Status, stage_times
from stream_scorer.scorer import MAX_CULPRITS, Scorer
from tests.fakes import EchoPlugin, FakeClock, request

ACCEPTED = "accepted: application/json, image/*"


def scorer(plugin: EchoPlugin, **limits: int) -> Scorer:
    given: dict[str, Any] = {
        "payload_bytes": 100,
        "result_bytes": 100,
        "max_batch_size": 512,
        **limits,
    }
    return Scorer(plugin, "the model", **given)


def requests(count: int) -> list[Request]:
    """Requests whose payloads are their numbers, from 1."""
    return [request(offset=number, payload=b"%d" % number) for number in range(1, count + 1)]


def statuses(answers: Sequence[Answer]) -> list[str]:
    return [answer.status.value for answer in answers]


def detail(answer: Answer) -> str:
    told = json.loads(answer.body)["detail"]
    assert isinstance(told, str)
    return told


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class UnprintableRefusal(InvalidPayload):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class PanicException(BaseException):
    """As a panic in a library written in Rust arrives: not an ``Exception``."""


def recurse() -> None:
    recurse()


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise error

    return call


HOSTILE = [
    ValueError("wrong"),
    SystemExit(3),
    MemoryError(),
    StopIteration(),
    GeneratorExit(),
    KeyError("\ud800"),
    Unprintable(),
    PanicException("index out of range"),
    ExceptionGroup("several", [ValueError("a"), TypeError("b")]),
]


def kind(error: object) -> str:
    return type(error).__name__


def test_answers_come_in_the_order_of_their_requests() -> None:
    mixed = [
        request(offset=1, payload=b"a"),
        request(offset=2, content_type="text/csv"),
        request(offset=3, payload=b"b"),
        request(offset=4, payload=b""),
        request(offset=5, payload=b"c"),
    ]
    answers = scorer(EchoPlugin()).score(mixed)
    assert [answer.request for answer in answers] == mixed
    assert statuses(answers) == [
        "ok",
        "unsupported-content-type",
        "ok",
        "invalid-payload",
        "ok",
    ]
    assert [answer.body for answer in answers if answer.status is Status.OK] == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("count", "batches"), [(0, []), (1, [1]), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])]
)
def test_predict_gets_at_most_a_batch(count: int, batches: list[int]) -> None:
    plugin = EchoPlugin()
    answers = scorer(plugin, max_batch_size=4).score(requests(count))
    assert [answer.body for answer in answers] == [b"%d" % n for n in range(1, count + 1)]
    assert plugin.batches == batches
    assert set(plugin.models) <= {"the model"}


def test_a_plugin_may_set_its_own_batch_size() -> None:
    class Small(EchoPlugin):
        max_batch_size: ClassVar[int | None] = 2

    plugin = Small()
    scorer(plugin, max_batch_size=4).score(requests(3))
    assert plugin.batches == [2, 1]


def test_the_plugin_gets_what_the_caller_sent() -> None:
    seen: list[Any] = []

    def decode(payload: bytes, content_type: str) -> bytes:
        seen.append((payload, content_type))
        return payload

    def encode(prediction: bytes, accept: str | None) -> tuple[bytes, str]:
        seen.append(accept)
        return prediction, "image/png"

    asked = request(payload=b"x", content_type="Image/PNG; a=B", accept="text/csv")
    (answer,) = scorer(EchoPlugin(decode=decode, encode=encode)).score([asked])
    assert seen == [(b"x", "Image/PNG; a=B"), "text/csv"]
    assert (answer.content_type, answer.status) == ("image/png", Status.OK)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=utf-8;a=b",
        " application/json ",
        "Application/JSON",
        "image/png",
        "image/svg+xml",
    ],
)
def test_media_types_are_parsed_not_compared(content_type: str) -> None:
    (answer,) = scorer(EchoPlugin()).score([request(content_type=content_type)])
    assert answer.status is Status.OK


@pytest.mark.parametrize(
    "content_type",
    [
        *("application/jso", "application/json2", "application", "json", "", "/", "text/json"),
        *("*/*", "application/*", "images/png", "image", "a/b/c", "application/json/x"),
    ],
)
def test_another_media_type_is_told_what_is_accepted(content_type: str) -> None:
    plugin = EchoPlugin(decode=raising(AssertionError("decoded")))
    (answer,) = scorer(plugin).score([request(content_type=content_type)])
    assert answer.status is Status.UNSUPPORTED_CONTENT_TYPE
    assert answer.content_type == "application/problem+json"
    assert (
        detail(answer) == f"{content_type!r} is not accepted; accepted: application/json, image/*"
    )


def test_a_missing_media_type_is_told_what_is_accepted() -> None:
    (answer,) = scorer(EchoPlugin()).score([request(content_type=None)])
    assert answer.status is Status.UNSUPPORTED_CONTENT_TYPE
    assert detail(answer).endswith(ACCEPTED)


def test_a_huge_media_type_is_neither_parsed_nor_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("falcon.mediatypes.quality", raising(AssertionError("parsed")))
    huge = "application/json; a=" + "b" * 500_000
    (answer,) = scorer(EchoPlugin()).score([request(content_type=huge)])
    assert answer.status is Status.UNSUPPORTED_CONTENT_TYPE
    assert detail(answer).endswith(ACCEPTED)
    assert len(answer.body) < 10_000


@given(st.text(st.integers(0, 0x10FFFF).map(chr), max_size=20))
def test_no_media_type_can_make_scoring_raise(content_type: str) -> None:
    (answer,) = scorer(EchoPlugin()).score([request(content_type=content_type)])
    json.loads(answer.body)


@pytest.mark.parametrize("payload", [None, b""])
def test_a_null_or_empty_payload_is_not_decoded(payload: bytes | None) -> None:
    plugin = EchoPlugin(decode=raising(AssertionError("decoded")))
    (answer,) = scorer(plugin).score([request(payload=payload)])
    assert answer.status is Status.INVALID_PAYLOAD
    assert detail(answer) == "the payload is empty"


@pytest.mark.parametrize(("size", "status"), [(9, Status.OK), (10, Status.OK), (11, None)])
def test_a_payload_over_the_limit_is_not_decoded(size: int, status: Status | None) -> None:
    decode = raising(AssertionError("decoded")) if status is None else (lambda payload, _: payload)
    (answer,) = scorer(EchoPlugin(decode=decode), payload_bytes=10).score(
        [request(payload=b"x" * size)]
    )
    assert answer.status is (status or Status.PAYLOAD_TOO_LARGE)
    if status is None:
        assert detail(answer) == "the payload has 11 bytes, more than 10"


@pytest.mark.parametrize(("size", "status"), [(10, "ok"), (11, "model-error")])
def test_a_result_over_the_limit_is_a_model_error(size: int, status: str) -> None:
    plugin = EchoPlugin(encode=lambda _, __: (b"x" * size, "application/json"))
    (answer,) = scorer(plugin, result_bytes=10).score([request()])
    assert statuses([answer]) == [status]
    if status == "model-error":
        assert detail(answer) == "the result has 11 bytes, more than 10"


def test_the_text_of_a_refusal_is_what_the_caller_reads() -> None:
    (answer,) = scorer(EchoPlugin(decode=raising(InvalidPayload("no column pH")))).score(
        [request()]
    )
    assert answer.status is Status.INVALID_PAYLOAD
    assert detail(answer) == "no column pH"
    assert answer.failure is not None
    assert answer.failure.exception == "stream_scorer.plugins.plugin.InvalidPayload"


@pytest.mark.parametrize(
    "refusal",
    [UnprintableRefusal(), InvalidPayload("\ud800"), InvalidPayload(), InvalidPayload(b"\xff", 1)],
    ids=repr,
)
@pytest.mark.parametrize("step", ["decode", "predict"])
def test_a_refusal_whose_text_cannot_be_told_is_still_the_callers_fault(
    step: str, refusal: InvalidPayload
) -> None:
    (answer,) = scorer(EchoPlugin(**{step: raising(refusal)})).score([request()])
    assert answer.status is Status.INVALID_PAYLOAD
    assert isinstance(detail(answer), str)
    assert answer.failure is not None


def test_a_refusal_that_quotes_the_payload_does_not_swell_the_answer() -> None:

    def decode(payload: bytes, _: str) -> bytes:
        raise InvalidPayload(f"not JSON: {payload!r}")

    big = request(payload=b"\x00" * 900_000)
    (answer,) = scorer(EchoPlugin(decode=decode), payload_bytes=900_000).score([big])
    assert answer.status is Status.INVALID_PAYLOAD
    assert len(answer.body) < 10_000


@pytest.mark.parametrize("error", HOSTILE, ids=kind)
def test_whatever_decode_raises_is_that_payloads_fault(error: BaseException) -> None:
    def decode(payload: bytes, _: str) -> bytes:
        if payload == b"2":
            raise error
        return payload

    answers = scorer(EchoPlugin(decode=decode)).score(requests(3))
    assert statuses(answers) == ["ok", "invalid-payload", "ok"]
    assert detail(answers[1]) == f"the payload cannot be decoded ({kind(error)})"


@pytest.mark.parametrize("error", HOSTILE, ids=kind)
def test_whatever_predict_raises_harms_only_its_culprit(error: BaseException) -> None:
    def predict(instances: Sequence[bytes]) -> list[bytes]:
        if b"2" in instances:
            raise error
        return list(instances)

    answers = scorer(EchoPlugin(predict=predict)).score(requests(5))
    assert statuses(answers) == ["ok", "model-error", "ok", "ok", "ok"]
    assert [answer.body for answer in answers if answer.status is Status.OK] == [
        *(b"1", b"3", b"4", b"5")
    ]
    assert detail(answers[1]) == f"the model cannot score this payload ({kind(error)})"


@pytest.mark.parametrize("error", HOSTILE, ids=kind)
def test_whatever_encode_raises_harms_only_its_request(error: BaseException) -> None:
    def encode(prediction: bytes, _: str | None) -> tuple[bytes, str]:
        if prediction == b"2":
            raise error
        return prediction, "application/json"

    answers = scorer(EchoPlugin(encode=encode)).score(requests(3))
    assert statuses(answers) == ["ok", "model-error", "ok"]
    assert detail(answers[1]) == f"the prediction cannot be encoded ({kind(error)})"


@pytest.mark.parametrize("step", ["decode", "predict", "encode"])
def test_a_plugin_that_recurses_without_end_harms_only_its_request(step: str) -> None:
    plugin = EchoPlugin(**{step: lambda *_: recurse()})
    (answer,) = scorer(plugin).score([request()])
    assert answer.status is (Status.INVALID_PAYLOAD if step == "decode" else Status.MODEL_ERROR)
    assert "(RecursionError)" in detail(answer)


@pytest.mark.parametrize("step", ["decode", "predict", "encode"])
def test_the_person_at_the_terminal_can_still_interrupt(step: str) -> None:
    plugin = EchoPlugin(**{step: raising(KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        scorer(plugin).score([request()])


def test_a_problem_names_nothing_internal(caplog: pytest.LogCaptureFixture) -> None:
    for step in ("decode", "predict", "encode"):
        plugin = EchoPlugin(**{step: raising(OSError(2, "missing", "/etc/secret"))})
        (answer,) = scorer(plugin).score([request()])
        assert b"secret" not in answer.body
        assert b"Traceback" not in answer.body
        assert b".py" not in answer.body
        assert answer.failure is not None
        assert answer.failure.exception == "builtins.FileNotFoundError"
        assert "/etc/secret" in answer.failure.message
        assert "test_scorer.py" in answer.failure.stacktrace
    assert caplog.text.count("Traceback") == 3


def test_a_callers_fault_is_not_logged_as_ours(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scorer(EchoPlugin(decode=raising(InvalidPayload("no")))).score([request()])
    scorer(EchoPlugin(predict=raising(InvalidPayload("no")))).score([request()])
    assert caplog.records == []


class LongerThanItSays(list[Any]):
    def __len__(self) -> int:
        return super().__len__() - 1


class Broken(list[Any]):
    def __iter__(self) -> Any:
        raise OSError("lost")


NOT_PREDICTIONS: list[Callable[[Sequence[Any]], Any]] = [
    lambda _: None,
    lambda _: 7,
    lambda items: items[:-1],
    lambda items: [*items, 0],
    lambda items: (item for item in items),
    lambda items: dict.fromkeys(range(len(items))),
    lambda items: set(range(len(items))),
    lambda items: "x" * len(items),
    lambda items: b"x" * len(items),
    lambda items: bytearray(len(items)),
    lambda items: LongerThanItSays([*items, 0]),
    lambda items: Broken(items),
    lambda items: np.float64(1.0),
    lambda items: pd.DataFrame({"a": range(len(items))}),
    lambda items: pd.DataFrame(np.zeros((len(items), len(items)))),
]


@pytest.mark.parametrize("predict", NOT_PREDICTIONS)
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_not_one_prediction_for_each_is_a_model_error(
    predict: Callable[[Sequence[Any]], Any], count: int
) -> None:
    plugin = EchoPlugin(predict=predict, encode=lambda body, _: (repr(body).encode(), "text/plain"))
    assert statuses(scorer(plugin).score(requests(count))) == ["model-error"] * count


@pytest.mark.parametrize("form", [list, tuple, np.array, pd.Series], ids=lambda form: form.__name__)
def test_lists_tuples_and_arrays_are_predictions(form: Callable[[Any], Any]) -> None:
    plugin = EchoPlugin(
        predict=lambda items: form([int(item) * 2 for item in items]),
        encode=lambda body, _: (b"%d" % body, "application/json"),
    )
    answers = scorer(plugin).score(requests(3))
    assert [answer.body for answer in answers] == [b"2", b"4", b"6"]


def test_a_wrong_length_says_so_in_the_dead_letter() -> None:
    (answer,) = scorer(EchoPlugin(predict=lambda _: [])).score([request()])
    assert answer.failure is not None
    assert "predict returned 0 predictions for 1 instances" in answer.failure.message


def test_a_short_answer_to_a_batch_is_blamed_on_the_culprit_alone() -> None:
    """As with a model that drops rows it cannot score."""
    plugin = EchoPlugin(predict=lambda items: [item for item in items if item != b"3"])
    assert statuses(scorer(plugin).score(requests(4))) == ["ok", "ok", "model-error", "ok"]


def failing_on(culprits: set[int]) -> Callable[[Sequence[bytes]], list[bytes]]:
    def predict(instances: Sequence[bytes]) -> list[bytes]:
        if found := culprits.intersection(map(int, instances)):
            raise ValueError(f"cannot score {sorted(found)}")
        return list(instances)

    return predict


@given(st.integers(1, 40), st.data())
def test_a_batch_is_split_until_each_culprit_is_alone(count: int, data: st.DataObject) -> None:
    culprits = data.draw(st.sets(st.integers(1, count), max_size=MAX_CULPRITS))
    plugin = EchoPlugin(predict=failing_on(culprits))
    answers = scorer(plugin).score(requests(count))
    for number, answer in enumerate(answers, start=1):
        assert answer.status is (Status.MODEL_ERROR if number in culprits else Status.OK)
        if number in culprits:
            assert answer.failure is not None
            assert answer.failure.message == f"ValueError: cannot score [{number}]"
        else:
            assert answer.body == b"%d" % number
    # Halving finds each culprit in as many calls as the batch has halves.
    assert len(plugin.batches) <= 1 + 2 * len(culprits) * math.ceil(math.log2(count) or 1)


def test_a_broken_model_is_given_up_after_eight_culprits() -> None:
    plugin = EchoPlugin(predict=failing_on(set(range(1, 513))))
    answers = scorer(plugin).score(requests(512))
    assert statuses(answers) == ["model-error"] * 512
    assert plugin.batches.count(1) == MAX_CULPRITS
    assert len(plugin.batches) < 40


def test_each_batch_has_eight_culprits_of_its_own() -> None:
    culprits = {*range(1, 9), *range(33, 41)}
    plugin = EchoPlugin(predict=failing_on(culprits))
    answers = scorer(plugin, max_batch_size=32).score(requests(64))
    assert [n for n, answer in enumerate(answers, 1) if answer.status is not Status.OK] == [
        *sorted(culprits)
    ]


def test_a_refusal_in_predict_is_the_callers_fault_and_no_culprit() -> None:
    def predict(instances: Sequence[bytes]) -> list[bytes]:
        for item in instances:
            if int(item) % 2:
                raise InvalidPayload(f"{int(item)} is odd")
        return list(instances)

    answers = scorer(EchoPlugin(predict=predict)).score(requests(40))
    assert statuses(answers) == ["invalid-payload", "ok"] * 20
    assert detail(answers[38]) == "39 is odd"


def test_what_is_given_up_with_a_broken_model_is_not_blamed_on_a_caller() -> None:
    """Nor does one caller read what the plugin said of another's payload."""
    broken = set(range(1, 9))

    def predict(instances: Sequence[bytes]) -> list[bytes]:
        numbers = set(map(int, instances))
        if numbers & broken:
            raise ValueError("broken")
        if 20 in numbers:
            raise InvalidPayload("20 is private")
        return list(instances)

    answers = scorer(EchoPlugin(predict=predict)).score(requests(32))
    for number, answer in enumerate(answers, start=1):
        if answer.status is Status.INVALID_PAYLOAD or b"private" in answer.body:
            assert number == 20
    assert statuses(answers[:8]) == ["model-error"] * 8


NOT_RESULTS: list[Any] = [
    *(None, 7, "ab", b"ab", (), (b"x",), (b"x", "a/b", 1), ("text", "text/plain")),
    *((None, "text/plain"), ([1], "text/plain"), (b"x", None), (b"x", b"text/plain"), (b"x", 1)),
    *((b"x", ""), (b"x", "json"), (b"x", "text/é"), (b"x", "text/plain\r\nx-a: 1"), (b"x", "a/\0")),
]


@pytest.mark.parametrize("result", NOT_RESULTS, ids=repr)
def test_what_is_not_bytes_and_a_media_type_is_a_model_error(result: Any) -> None:
    plugin = EchoPlugin(encode=lambda body, _: result if body == b"2" else (body, "text/plain"))
    assert statuses(scorer(plugin).score(requests(3))) == ["ok", "model-error", "ok"]


@pytest.mark.parametrize(
    "body", [b"ab", bytearray(b"ab"), memoryview(b"ab"), np.array([97, 98], "u1")]
)
def test_whatever_holds_bytes_is_a_body(body: Any) -> None:
    (answer,) = scorer(EchoPlugin(encode=lambda _, __: (body, "text/plain"))).score([request()])
    assert (answer.status, answer.body) == (Status.OK, b"ab")
    assert type(answer.body) is bytes


def test_an_empty_body_is_a_result() -> None:
    (answer,) = scorer(EchoPlugin(encode=lambda _, __: (b"", "text/plain"))).score([request()])
    assert (answer.status, answer.body) == (Status.OK, b"")


def test_the_stages_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("stream_scorer.scorer.perf_counter", clock)

    def decode(payload: bytes, _: str) -> bytes:
        clock.move(1)
        return payload

    def predict(instances: Sequence[bytes]) -> Sequence[bytes]:
        clock.move(10)
        return instances

    def encode(prediction: bytes, _: str | None) -> tuple[bytes, str]:
        clock.move(3)
        return prediction, "text/plain"

    plugin = EchoPlugin(decode=decode, predict=predict, encode=encode)
    for answer in scorer(plugin).score(requests(2)):
        assert answer.stages == stage_times(2000, 10_000, 6000), "of both together"


def test_a_model_error_keeps_the_times_of_the_stages_it_went_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr("stream_scorer.scorer.perf_counter", lambda: next(ticks))
    plugin = EchoPlugin(predict=raising(ValueError()))
    (answer,) = scorer(plugin).score([request()])
    assert answer.stages == stage_times(1000, 1000, 1000)


def test_a_failed_prediction_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for the garbage collector, which a worker runs seldom: instances may be large."""

    class Instance:
        """What can be asked whether it is still there."""

    alive: list[weakref.ref[Instance]] = []

    def decode(_: bytes, __: str) -> Instance:
        instance = Instance()
        alive.append(weakref.ref(instance))
        return instance

    def predict(_: Any) -> Any:
        raise ValueError

    plugin = EchoPlugin(decode=decode, predict=predict)
    # Those that pytest keeps hold the traceback.
    monkeypatch.setattr(logging.getLogger("stream_scorer.scorer"), "disabled", True)
    gc.disable()
    try:
        scorer(plugin).score(requests(3))
        assert [instance() for instance in alive] == [None] * 3
    finally:
        gc.enable()
