from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from stream_scorer.metrics import MULTIPROCESS, Metrics, all_slots
from stream_scorer.protocol import Answer, Status, problem
from tests.fakes import request

ROOT = Path(__file__).parent.parent.parent


def test_answers_and_dead_letters_are_counted_by_status() -> None:
    metrics = Metrics(3)
    asked = request()
    replied = request(reply_topic="score-replies")
    metrics.answered(
        [
            Answer(asked, Status.OK, "text/plain", b""),
            Answer(asked, Status.OK, "text/plain", b""),
            problem(asked, Status.INVALID_PAYLOAD, "no"),
            problem(replied, Status.INVALID_PAYLOAD, "no"),
            problem(replied, Status.MODEL_ERROR, "no"),
            problem(asked, Status.EXPIRED, "no"),
        ]
    )

    def value(name: str, status: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"slot": "3", "status": status})

    assert value("scorer_requests_total", "ok") == 2
    assert value("scorer_requests_total", "invalid-payload") == 2
    assert value("scorer_requests_total", "expired") == 1
    assert value("scorer_dead_letters_total", "invalid-payload") == 1
    assert value("scorer_dead_letters_total", "model-error") == 1
    assert value("scorer_dead_letters_total", "expired") == 0


@pytest.mark.parametrize("stage", ["queue", "decode", "predict", "encode", "publish"])
def test_stages_are_histograms(stage: str) -> None:
    metrics = Metrics(0)
    metrics.stage(stage, 0.003)  # type: ignore[arg-type]
    labels = {"slot": "0", "stage": stage}
    sample = metrics.registry.get_sample_value
    assert sample("scorer_stage_seconds_count", labels) == 1
    assert sample("scorer_stage_seconds_sum", labels) == 0.003
    assert sample("scorer_stage_seconds_bucket", labels | {"le": "0.0025"}) == 0
    assert sample("scorer_stage_seconds_bucket", labels | {"le": "0.005"}) == 1


def test_every_metric_has_its_name_and_slot() -> None:
    metrics = Metrics(5)
    metrics.answered([problem(request(), Status.MODEL_ERROR, "no")])
    metrics.stage("queue", 1)
    metrics.rebalanced("revoked")
    metrics.model("wine; version=1")
    metrics.batch(10)
    text = generate_latest(metrics.registry).decode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('slot="5"' in line for line in samples)
    names = {line.partition("{")[0] for line in samples}
    plain = {name for name in names if not name.endswith(("_bucket", "_sum", "_count", "_created"))}
    assert plain == {
        "scorer_requests_total",
        "scorer_dead_letters_total",
        "scorer_rebalances_total",
        "scorer_model_info",
        "scorer_in_flight",
        "scorer_lag",
        "scorer_paused",
        "scorer_assigned",
        "scorer_commits_total",
        "scorer_aborts_total",
        "scorer_producer_renewals_total",
    }
    assert {"scorer_stage_seconds_count", "scorer_turn_requests_count"} < names
    assert "scorer_batch_instances_count" in names
    assert 'scorer_model_info{model="wine; version=1",slot="5"} 1.0' in samples


def test_the_processes_of_all_slots_are_served_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slot's processes, counters add up and gauges are those of the one that runs."""
    code = (
        "import sys; from stream_scorer.metrics import Metrics\n"
        "metrics = Metrics(int(sys.argv[1]))\n"
        "metrics.commits.inc(int(sys.argv[2])); metrics.lag.set(int(sys.argv[2]))"
    )
    for slot, number in ((0, 5), (0, 2), (1, 7)):
        subprocess.run(
            [sys.executable, "-c", code, str(slot), str(number)],
            cwd=ROOT,
            env={**os.environ, MULTIPROCESS: str(tmp_path)},
            check=True,
            timeout=60,
        )
    monkeypatch.setenv(MULTIPROCESS, str(tmp_path))
    registry = all_slots()
    commits = [registry.get_sample_value("scorer_commits_total", {"slot": s}) for s in "01"]
    lags = [registry.get_sample_value("scorer_lag", {"slot": s}) for s in "01"]
    assert (commits, lags) == ([7, 7], [2, 7])


def test_a_process_that_starts_has_none_of_what_its_slots_last_one_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from stream_scorer.metrics import Metrics; metrics = Metrics(0); "
    for does in ("metrics.assigned.set(4); metrics.lag.set(9)", "pass"):
        subprocess.run(
            [sys.executable, "-c", code + does],
            cwd=ROOT,
            env={**os.environ, MULTIPROCESS: str(tmp_path)},
            check=True,
            timeout=60,
        )
    monkeypatch.setenv(MULTIPROCESS, str(tmp_path))
    registry = all_slots()
    found = [registry.get_sample_value(f"scorer_{n}", {"slot": "0"}) for n in ("assigned", "lag")]
    assert found == [0, 0]
