"""The profile `observe`: Prometheus sees every worker and facade, and its alerts go off."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from confluent_kafka import Producer

from tests.e2e.services import ROOT, WINE, Compose, Requests, running, settled

pytestmark = pytest.mark.timeout(1800)

RULES = ROOT / "deploy/prometheus/alerts.yml"
# The longest that any rule waits, and a few scrapes.
ALERT_WAIT = 180.0


def prometheus_image() -> str:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    image: str = services["services"]["prometheus"]["image"]
    return image


@pytest.fixture(scope="module")
def observed() -> Iterator[Compose]:
    """Kafka, two workers, the facade and Prometheus."""
    image = prometheus_image()
    if shutil.which("docker") and not any(
        subprocess.run(["docker", *command, image], capture_output=True, check=False).returncode
        == 0
        for command in (["image", "inspect"], ["pull", "--quiet"])
    ):
        pytest.skip(f"needs the image {image}, which cannot be pulled; see tests/e2e/prometheus.sh")
    with running("--profile", "observe") as services:
        services.up("--scale", "worker=2", "worker")
        yield services


def ask(observed: Compose, path: str) -> Any:
    """What Prometheus answers to a GET."""
    url = f"http://127.0.0.1:{observed.prometheus_port}/api/v1/{path}"
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)["data"]


def alerts(observed: Compose) -> dict[str, str]:
    """The alerts whose conditions hold, and their states: ``pending`` or ``firing``."""
    return {
        each["labels"]["alertname"]: each["state"] for each in ask(observed, "alerts")["alerts"]
    }


def evaluated(observed: Compose) -> str:
    """When the rules were last looked at."""
    (group,) = ask(observed, "rules")["groups"]
    when: str = group["lastEvaluation"]
    return when


def test_every_worker_and_facade_is_scraped(observed: Compose) -> None:
    def jobs() -> list[tuple[str, str]]:
        targets = ask(observed, "targets?state=active")["activeTargets"]
        return sorted((each["labels"]["job"], each["health"]) for each in targets)

    wanted = [("facade", "up"), ("worker", "up"), ("worker", "up")]
    assert settled(jobs, wanted.__eq__) == wanted


def test_all_that_the_rules_name_is_there(observed: Compose) -> None:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    names = {name for rule in group["rules"] for name in re.findall(r"\bscorer_\w+", rule["expr"])}
    assert len(names) >= 5

    def missing() -> set[str]:
        return names - set(ask(observed, "label/__name__/values"))

    assert settled(missing, set[str]().__eq__) == set()
    (loaded,) = ask(observed, "rules")["groups"]
    assert {rule["health"] for rule in loaded["rules"]} == {"ok"}


def test_nothing_goes_off_while_requests_are_answered(observed: Compose) -> None:
    Requests(observed.bootstrap).produce(1000)
    answered = "sum(scorer_requests_total) >= 1000 and sum(scorer_lag) == 0"
    assert settled(lambda: ask(observed, f"query?query={quote(answered)}")["result"], bool)
    assert settled(lambda: alerts(observed), {}.__eq__) == {}
    for _ in range(4):
        before = evaluated(observed)
        assert settled(lambda: evaluated(observed), before.__ne__) != before
        assert alerts(observed) == {}


def test_a_dead_letter_is_told(observed: Compose) -> None:
    producer = Producer({"bootstrap.servers": observed.bootstrap})
    producer.produce("score-requests", b"?", headers={"content-type": "application/x-unknown"})
    assert producer.flush(60) == 0
    fires(observed, "ScorerDeadLetters")


def test_missing_workers_and_their_callers_are_told(observed: Compose) -> None:
    observed("stop", "worker")
    facade = http.client.HTTPConnection("127.0.0.1", observed.http_port, timeout=30)
    headers = {"Content-Type": "application/json", "Prefer": "wait=1"}
    facade.request("POST", "/api/predict", (ROOT / WINE).read_bytes(), headers)
    assert facade.getresponse().status == 504
    facade.close()
    fires(observed, "ScorerNoWorker")
    fires(observed, "ScorerFacadeTimeouts")


def test_a_facade_without_kafka_is_told(observed: Compose) -> None:
    observed("stop", "kafka")
    fires(observed, "ScorerFacadeNotReady")


def fires(observed: Compose, name: str) -> None:
    """Wait until an alert goes off."""
    seen = settled(lambda: alerts(observed), lambda now: now.get(name) == "firing", ALERT_WAIT)
    assert seen.get(name) == "firing", seen


def test_the_rules_hold_for_the_times_that_they_say(observed: Compose) -> None:
    tests = Path(__file__).parent / "alerts_test.yml"
    told = observed(
        # Its one writable place is that of the data.
        *("run", "--rm", "--no-deps", "--env", "TMPDIR=/prometheus"),
        *("--volume", f"{tests}:/tests/alerts_test.yml:ro"),
        *("--entrypoint", "promtool", "prometheus", "test", "rules", "/tests/alerts_test.yml"),
    )
    assert "SUCCESS" in told
