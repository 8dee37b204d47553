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
    names = set(re.findall(r"\bscorer_\w+", rule["expr"]))
    assert names
    assert names <= described(Metrics(0).registry) | described(FacadeMetrics().registry)
    assert f"| `{rule['alert']}` |" in OPERATIONS
