"""Every sample, scored over a real broker: by a foreign producer, and over HTTP."""

from __future__ import annotations

import http.client
import json
import mimetypes
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine import ROOT, environment_for, facade_process, worker_process
from tests.kafka_server import MakeTopics, free_ports
from tests.wire import RecordReader, RequestProducer, Send

KINDS = ("requests", "results", "replies", "dead_letters")
WINE = ROOT / "samples" / "sklearn_wine" / "data" / "predict-wine-quality.json"
DIGIT = ROOT / "samples" / "keras_mnist" / "data" / "mnist_0_10.png"
QUALITIES = [5.370157819225251, 5.535714285714286, 5.760869565217392]


def exact(answer: object) -> bool:
    return answer == QUALITIES


def close(answer: object) -> bool:
    return answer == pytest.approx(QUALITIES, abs=1e-6)


def zero(answer: object) -> bool:
    assert isinstance(answer, list)
    (probabilities,) = answer
    return len(probabilities) == 10 and max(probabilities) == probabilities[0]


@pytest.mark.parametrize(
    ("sample", "file", "right"),
    [
        ("sklearn_wine", WINE, exact),
        ("sklearn_wine/onnx", WINE, close),
        ("keras_mnist", DIGIT, zero),
    ],
)
def test_a_sample_scores_what_anybody_sends(
    sample: str,
    file: Path,
    right: Callable[[object], bool],
    kafka: str,
    topics: MakeTopics,
    unique_group: str,
    tmp_path: Path,
) -> None:
    names = dict(zip(KINDS, topics(4, *KINDS), strict=True))
    environment = environment_for(kafka, names, worker={"group": unique_group})
    conf = f"samples/{sample}/conf.yaml"
    (port,) = free_ports(1)
    payload = file.read_bytes()
    content_type = mimetypes.guess_type(file.name)[0] or ""
    with (
        RecordReader(kafka, names["results"]) as reader,
        worker_process(tmp_path, "worker", environment, conf),
        facade_process(tmp_path, "facade", environment, port),
    ):
        producer = RequestProducer(kafka, names["requests"])
        ids = producer.send(*(Send(payload, content_type) for _ in range(40)))
        answers = reader.answers(ids)
        # As the README's lines have it: the picture too is posted as JSON.
        over_http = post(port, payload, "application/json")
    assert {answer.status for answer in answers} == {"ok"}
    assert all(right(json.loads(answer.value or b"")) for answer in answers)
    assert right(json.loads(over_http))
    assert answers[0].header("model").startswith(f"file:samples/{sample}/model; version=")


def post(port: int, payload: bytes, content_type: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": content_type, "Accept": "application/octet-stream"}
    connection.request("POST", "/api/predict", payload, headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, body
    return body
