"""A plugin of the original server, unchanged, with the pandas that it was written for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stream_scorer.plugins import environments
from stream_scorer.plugins.environments import InstallFailed
from stream_scorer.plugins.packages import read_packages
from tests.engine import ROOT, environment_for, worker_process
from tests.kafka_server import MakeTopics
from tests.wire import RecordReader, RequestProducer, Send

KINDS = ("requests", "results", "replies", "dead_letters")
SAMPLE = ROOT / "samples" / "sklearn_wine"
QUALITIES = [5.370157819225251, 5.535714285714286, 5.760869565217392]
PACKAGES = ["pandas<3"]

# Text, not a file, is what pandas 3 no longer reads.
PLUGIN = """
import json

from mlflow_pluggable_scoring_server.plugin import BasePlugin


class Plugin(BasePlugin):
    def load_model(self, model_uri):
        import mlflow.sklearn

        return mlflow.sklearn.load_model(model_uri)

    def predict(self, model, data):
        import pandas as pd

        wines = pd.read_json(data.decode(), orient="split")
        measured = wines.drop(columns="quality", errors="ignore")
        return json.dumps({"pandas": pd.__version__, "wines": model.predict(measured).tolist()})

    def request_content_type(self):
        return "application/json"
"""


@pytest.fixture
def pandas_2() -> None:
    """It is installed once, into the user's own cache, from wherever pip installs here."""
    try:
        environments.make(read_packages(PACKAGES))
    except InstallFailed as error:
        pytest.skip(f"needs an index with pandas 2: {error}")


@pytest.mark.timeout(600)  # the first time pandas is installed
@pytest.mark.usefixtures("pandas_2")
def test_it_scores_over_kafka(
    kafka: str, topics: MakeTopics, unique_group: str, tmp_path: Path
) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    conf = tmp_path / "conf.yaml"
    model = str(SAMPLE / "model")
    conf.write_text(
        yaml.safe_dump({"plugin": "plugin.py", "model_uri": model, "packages": PACKAGES})
    )
    names = dict(zip(KINDS, topics(4, *KINDS), strict=True))
    environment = environment_for(kafka, names, worker={"group": unique_group})
    payload = (SAMPLE / "data" / "predict-wine-quality.json").read_bytes()
    with (
        RecordReader(kafka, names["results"]) as reader,
        worker_process(tmp_path, "worker", environment, str(conf)),
    ):
        producer = RequestProducer(kafka, names["requests"])
        good = producer.send(*(Send(payload, "application/json") for _ in range(5)))
        bad = producer.send(Send(payload[:100], "application/json"), Send(payload, "text/csv"))
        answers = {each.correlation_id: each for each in reader.answers([*good, *bad])}
    for each in good:
        assert answers[each].header("content-type") == "application/json"
        answered = json.loads(answers[each].value or b"")
        assert answered["wines"] == QUALITIES
        assert answered["pandas"].startswith("2.")
    assert [answers[each].status for each in bad] == ["invalid-payload", "unsupported-content-type"]
