from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import KafkaError

from stream_scorer.config import Topics
from stream_scorer.kafka.outputs import MAX_ECHO_BYTES, REFUSALS, TOO_LARGE, Output
from stream_scorer.kafka.routes import Routes
from stream_scorer.protocol import Answer, Failure, Status, problem
from tests.fakes import SIGNATURE, FakeTopics, request

ROUTES = Routes(
    Topics(), FakeTopics({"score-results": 4, "score-replies": 3, "score-requests.dlq": 2})
)
DLQ = "score-requests.dlq"
ASTRAY = sorted(REFUSALS - TOO_LARGE)


def scored(**fields: Any) -> Output:
    asked = request(3, 5, **fields)
    return Output.of(Answer(asked, Status.OK, "application/json", b"[1]"))


def failed(**fields: Any) -> Output:
    failure = Failure("E", "why", "where")
    return Output.of(problem(request(3, 5, **fields), Status.MODEL_ERROR, "no", failure))


def test_a_result_has_no_letter() -> None:
    output = scored(key=b"k")
    record = output.answer_record(ROUTES, SIGNATURE)
    assert record is not None
    assert record[:4] == ("score-results", 3, b"k", b"[1]")
    assert output.letter_record(ROUTES, DLQ) is None


def test_a_letter_keeps_the_request_as_it_came() -> None:
    output = failed(key=b"k", payload=b"\xff", headers=[("x", None)])
    record = output.letter_record(ROUTES, DLQ)
    assert record is not None
    assert record[:4] == (DLQ, 1, b"k", b"\xff")
    assert ("x", None) in record.headers
    assert ("__scorer.errors.stacktrace", b"where") in record.headers


@pytest.mark.parametrize("code", sorted(TOO_LARGE))
def test_a_result_that_is_too_large_becomes_a_small_problem_and_a_letter(code: int) -> None:
    large = b"x" * (MAX_ECHO_BYTES + 1)
    output = scored(key=large, correlation_id=b"c", passed_through=[("x-a", large)])
    assert output.answer_refused(KafkaError(code))
    record = output.answer_record(ROUTES, SIGNATURE)
    assert record is not None
    headers = dict(record.headers)
    assert (record.key, headers["status"], headers["correlation-id"]) == (
        None,
        b"model-error",
        b"c",
    )
    assert "x-a" not in headers
    letter = output.letter_record(ROUTES, DLQ)
    assert letter is not None
    assert letter.key == large, "the letter keeps all of the request"


def test_what_is_still_too_large_is_given_up_and_kept_as_a_letter() -> None:
    output = scored()
    error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
    assert output.answer_refused(error)
    assert output.answer_refused(error)
    assert output.answer_record(ROUTES, SIGNATURE) is None
    assert output.letter_record(ROUTES, DLQ) is not None
    assert not output.answer_refused(error), "there is nothing left to mend"


@pytest.mark.parametrize("code", ASTRAY)
def test_an_address_that_is_not_there_is_told_on_the_results(code: int) -> None:
    output = scored(reply_topic="score-replies", reply_partition=1)
    assert output.answer_refused(KafkaError(code))
    record = output.answer_record(ROUTES, SIGNATURE)
    assert record is not None
    assert record[:2] == ("score-results", 3)
    assert "score-replies" in json.loads(record.value or b"")["detail"]
    assert output.letter_record(ROUTES, DLQ) is not None
    assert not output.answer_refused(KafkaError(code)), "the results topic itself is not there"


def test_a_letter_that_was_there_stays_what_it_was() -> None:
    output = failed()
    letter = output.letter
    assert output.answer_refused(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    assert output.letter is letter


def test_a_letter_first_loses_its_trace_and_only_then_itself() -> None:
    output = failed()
    error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
    assert output.letter_refused(error)
    record = output.letter_record(ROUTES, DLQ)
    assert record is not None
    assert "__scorer.errors.stacktrace" not in dict(record.headers)
    assert output.letter_refused(error)
    assert output.letter_record(ROUTES, DLQ) is None


@pytest.mark.parametrize("code", [*ASTRAY, KafkaError._MSG_TIMED_OUT])
def test_other_refusals_of_a_letter_cannot_be_mended(code: int) -> None:
    assert not failed().letter_refused(KafkaError(code))
