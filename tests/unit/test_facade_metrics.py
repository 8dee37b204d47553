"""What the facade counts, in one process and in several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from http_facade.metrics import MULTIPROCESS, Metrics

ROOT = Path(__file__).parents[2]


def samples(exposition: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def value(exposition: bytes, name: str, **labels: str) -> float | None:
    return samples(exposition).get((f"scorer_facade_{name}", frozenset(labels.items())))


def test_requests_are_counted_by_path_method_and_status() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.responded("/api/predict", "POST", 200, 0.004)
    metrics.responded("/api/predict", "POST", 504, 10.5)
    metrics.responded("/livez", "GET", 200, 0.0001)
    text = metrics.exposition()
    predict = {"path": "/api/predict", "method": "POST"}
    assert value(text, "requests_total", **predict, status="200") == 3
    assert value(text, "requests_total", **predict, status="504") == 1
    assert value(text, "requests_total", path="/livez", method="GET", status="200") == 1
    assert value(text, "request_seconds_count", path="/api/predict") == 4
    assert value(text, "request_seconds_bucket", path="/api/predict", le="0.0025") == 0
    assert value(text, "request_seconds_bucket", path="/api/predict", le="0.005") == 3
    assert value(text, "request_seconds_bucket", path="/api/predict", le="10.0") == 3
    assert value(text, "request_seconds_sum", path="/api/predict") == 10.512


def test_labels_stay_few_whatever_is_sent() -> None:
    metrics = Metrics()
    for number in range(50):
        metrics.responded(None, f"METHOD{number}", 400, 0.001)
    text = metrics.exposition()
    assert value(text, "requests_total", path="other", method="other", status="400") == 50
    names = [name for name, _ in samples(text) if name == "scorer_facade_requests_total"]
    assert len(names) == 1


def test_the_status_and_the_metrics_count_the_same() -> None:
    metrics = Metrics()
    for number, count in enumerate(vars(metrics.counts).values(), start=1):
        count.inc(number)
    here = metrics.counts.here()
    assert list(here.items()) == [
        ("requests", 1),
        ("replies", 2),
        ("timeouts", 3),
        ("delivery_failures", 4),
        ("lost", 5),
        ("late", 6),
        ("duplicate", 7),
        ("orphan", 8),
        ("deferred", 9),
        ("foreign", 10),
        ("unreadable", 11),
    ]
    text = metrics.exposition()
    for name in ("timeouts", "delivery_failures", "lost"):
        assert value(text, f"{name}_total") == here[name]
    for outcome in ("late", "duplicate", "orphan", "deferred", "foreign", "unreadable"):
        assert value(text, "replies_total", outcome=outcome) == here[outcome]
    assert value(text, "sent_total") == here["requests"]
    assert value(text, "replies_total", outcome="answered") == here["replies"]


def test_what_has_not_happened_is_nought() -> None:
    text = Metrics().exposition()
    assert value(text, "timeouts_total") == value(text, "pending") == value(text, "ready") == 0
    assert value(text, "replies_total", outcome="late") == 0


PROCESS = """
import json, sys
from types import SimpleNamespace
from http_facade import gunicorn_conf as conf
worker = SimpleNamespace(slot=int(sys.argv[1]))
conf.post_fork(None, worker)
from http_facade.metrics import Metrics
metrics = Metrics()
metrics.counts.requests.inc(int(sys.argv[2]))
metrics.responded("/livez", "GET", 200, 0.5)
metrics.ready.set(1)
print(json.dumps([metrics.counts.here()["requests"], metrics.exposition().decode()]))
"""


def in_process(folder: Path, slot: int, sent: int) -> tuple[int, bytes]:
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(slot), str(sent)],
        cwd=ROOT,
        env={**os.environ, MULTIPROCESS: str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    here, text = json.loads(done.stdout)
    return here, text.encode()


def test_one_process_tells_of_all(tmp_path: Path) -> None:
    in_process(tmp_path, 0, 5)
    here, text = in_process(tmp_path, 1, 2)
    assert here == 2
    assert value(text, "sent_total") == 7
    assert value(text, "ready") == 2
    assert value(text, "requests_total", path="/livez", method="GET", status="200") == 2
    assert value(text, "request_seconds_count", path="/livez") == 2


def test_a_process_that_takes_a_place_goes_on_there_and_adds_no_file(tmp_path: Path) -> None:
    in_process(tmp_path, 0, 5)
    files = sorted(file.name for file in tmp_path.iterdir())
    here, text = in_process(tmp_path, 0, 2)
    assert here == 2
    assert value(text, "sent_total") == 7
    assert value(text, "ready") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == files


# ---- what gunicorn's hooks do -----------------------------------------------------------------

HOOKS = """
import json, os
from pathlib import Path
from types import SimpleNamespace as Made
from http_facade import gunicorn_conf as conf
folder = lambda: os.environ.get("PROMETHEUS_MULTIPROC_DIR")
found = {"before": folder()}
conf.when_ready(Made(num_workers=PROCESSES))
found["made"] = folder()
found["is_there"] = folder() is not None and Path(folder()).is_dir()
server, slots = Made(WORKERS={}), []
def fork(pid):
    worker = Made()
    conf.pre_fork(server, worker)
    server.WORKERS[pid] = worker
    slots.append(worker.slot)
    if folder():
        for kind in ("counter", "gauge_livesum"):
            Path(folder(), f"{kind}_{worker.slot}.db").touch()
for pid in (10, 11, 12):
    fork(pid)
conf.child_exit(server, server.WORKERS.pop(11))
if folder():
    found["files"] = sorted(file.name for file in Path(folder()).iterdir())
fork(13)
fork(14)
found["slots"] = slots
conf.on_exit(server)
found["removed"] = found["made"] is not None and not Path(found["made"]).exists()
print(json.dumps(found))
"""


def hooks(processes: int, **environ: str) -> dict[str, Any]:
    inherited = {name: text for name, text in os.environ.items() if "SCORER" not in name}
    done = subprocess.run(
        [sys.executable, "-c", HOOKS.replace("PROCESSES", str(processes))],
        cwd=ROOT,
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_several_processes_get_a_folder_and_places_in_it() -> None:
    found = hooks(3)
    assert found["before"] is None
    assert found["is_there"]
    # The second has ended: its gauge is gone, what it counted is not, and the next takes its place.
    assert found["slots"] == [0, 1, 2, 1, 3]
    assert found["files"] == [
        *("counter_0.db", "counter_1.db", "counter_2.db"),
        *("gauge_livesum_0.db", "gauge_livesum_2.db"),
    ]
    assert found["removed"]


def test_one_process_counts_in_memory_whatever_is_in_the_environment(tmp_path: Path) -> None:
    found = hooks(1, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert found["before"] == str(tmp_path)
    assert found["made"] is None
    assert tmp_path.exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    found = hooks(3, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert found["made"] != str(tmp_path)
    assert list(tmp_path.iterdir()) == []
