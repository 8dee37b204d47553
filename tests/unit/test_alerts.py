"""The alerts of deploy/prometheus name metrics that workers and facades have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from http_facade.metrics import Metrics as FacadeMetrics
from stream_scorer.metrics import Metrics

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
PROMETHEUS = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
(GROUP,) = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))[
    "groups"
]


def described(registry: CollectorRegistry) -> set[str]:
    """The names under which a registry's samples are scraped, before any of them has a label."""
    return {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for metric in registry.collect()
    }


@pytest.mark.parametrize("rule", GROUP["rules"], ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_what_is_measured_and_is_explained(rule: dict[str, Any]) -> None:
    # `up` is Prometheus's own, of each target.
    names = set(re.findall(r"\b(?:scorer_\w+|up\b)", rule["expr"]))
    assert names
    assert names <= described(Metrics(0).registry) | described(FacadeMetrics().registry) | {"up"}
    assert f"| `{rule['alert']}` |" in OPERATIONS


def test_the_jobs_of_an_alert_are_those_that_are_scraped() -> None:
    jobs = [job for rule in GROUP["rules"] for job in re.findall(r'job=~"(.*?)"', rule["expr"])]
    scraped = {each["job_name"] for each in PROMETHEUS["scrape_configs"]}
    assert [set(job.split("|")) for job in jobs] == [scraped]
