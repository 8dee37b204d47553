"""What a single worker tells of itself over HTTP, and how many threads it computes in."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from stream_scorer.cli.worker import THREAD_VARIABLES
from tests.engine import environment_for, numbers_conf, process, worker_process
from tests.kafka_server import MakeTopics, free_ports
from tests.wire import RecordReader, RequestProducer, Send

KINDS = ("requests", "results", "replies", "dead_letters")


def get(url: str) -> tuple[int, str]:
    """Status and body; 0 where nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


@pytest.fixture
def names(topics: MakeTopics, kafka: str) -> dict[str, str]:
    return dict(zip(KINDS, topics(4, *KINDS), strict=True))


@pytest.fixture
def conf(tmp_path: Path) -> str:
    return str(numbers_conf(tmp_path))


def test_metrics_and_probes_of_a_worker(
    kafka: str, names: dict[str, str], unique_group: str, conf: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    worker = {"group": unique_group, "metrics_port": port, "metrics_host": "127.0.0.1", "slot": 4}
    environment = environment_for(kafka, names, worker=worker)
    with (
        RecordReader(kafka, names["results"]) as reader,
        worker_process(tmp_path, "worker", environment, conf) as started,
    ):
        assert get(f"{url}/readyz")[0] == get(f"{url}/livez")[0] == 200
        producer = RequestProducer(kafka, names["requests"])
        reader.answers(producer.send(*(Send(b"1") for _ in range(20)), Send(b"x"), Send(b"boom")))
        expected = {
            'scorer_requests_total{slot="4",status="ok"} 20.0',
            'scorer_requests_total{slot="4",status="invalid-payload"} 1.0',
            'scorer_requests_total{slot="4",status="model-error"} 1.0',
            'scorer_dead_letters_total{slot="4",status="model-error"} 1.0',
            'scorer_rebalances_total{event="assigned",slot="4"} 1.0',
            'scorer_assigned{slot="4"} 4.0',
            'scorer_in_flight{slot="4"} 0.0',
        }
        started.wait_for("metrics", lambda: expected <= set(get(f"{url}/metrics")[1].splitlines()))
        text = get(f"{url}/metrics")[1]
        for stage in ("queue", "decode", "predict", "encode", "publish"):
            assert f'scorer_stage_seconds_count{{slot="4",stage="{stage}"}}' in text
        assert 'scorer_model_info{model="' in text


def test_it_is_not_ready_before_it_is_in_its_group(conf: str, tmp_path: Path) -> None:
    port, nobody = free_ports(2)
    url = f"http://127.0.0.1:{port}"
    worker = {"metrics_port": port, "metrics_host": "127.0.0.1", "startup_timeout": 30}
    environment = environment_for(f"127.0.0.1:{nobody}", {}, worker=worker)
    with process(tmp_path / "log", "worker", "--conf", conf, environment=environment) as started:
        started.wait_for("probes", lambda: get(f"{url}/livez")[0] == 200)
        assert get(f"{url}/readyz")[0] == 503


PLUGIN = """
import os
from tests.numbers_plugin import Plugin as Numbers

class Plugin(Numbers):
    def load_model(self, model_uri):
        names = os.environ["THREAD_VARIABLES"].split()
        print("THREADS", *(os.environ.get(name) for name in names), flush=True)
"""


def test_a_worker_computes_in_one_thread_unless_told_otherwise(
    kafka: str,
    names: dict[str, str],
    conf: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    told, *rest = THREAD_VARIABLES
    environment = {
        **environment_for(kafka, names),
        "SCORER_PLUGIN": str(plugin),
        "THREAD_VARIABLES": " ".join(THREAD_VARIABLES),
        told: "3",
    }
    with process(tmp_path / "log", "worker", "--conf", conf, environment=environment) as started:
        line = f"THREADS 3{' 1' * len(rest)}"
        started.wait_for("threads", lambda: line in started.text)
