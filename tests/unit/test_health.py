from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from stream_scorer.errors import OperationError
from stream_scorer.health import BEAT_EVERY, STUCK_AFTER, Pulse, Pulses, serve
from tests.fakes import FakeClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr("stream_scorer.health.time.monotonic", fake)
    return fake


def test_the_file_is_there_while_the_worker_is_ready(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    pulse = Pulse(file)
    assert (pulse.ready(), file.exists()) == (False, False)
    pulse.set_ready(True)
    assert (pulse.ready(), file.exists()) == (True, True)
    pulse.set_ready(False)
    assert (pulse.ready(), file.exists()) == (False, False)


def test_a_beat_keeps_it_alive_and_its_file_young(tmp_path: Path, clock: FakeClock) -> None:
    file = tmp_path / "ready"
    pulse = Pulse(file)
    pulse.set_ready(True)
    os.utime(file, (1, 1))
    pulse.beat()
    assert file.stat().st_mtime == 1, "not at every turn of the loop"
    clock.move(BEAT_EVERY)
    pulse.beat()
    assert file.stat().st_mtime > 1
    clock.move(STUCK_AFTER - 0.1)
    assert pulse.alive()
    clock.move(0.2)
    assert not pulse.alive()
    pulse.beat()
    assert pulse.alive()


def test_a_beat_does_not_make_it_ready(tmp_path: Path, clock: FakeClock) -> None:
    pulse = Pulse(tmp_path / "ready")
    clock.move(2 * BEAT_EVERY)
    pulse.beat()
    assert not (tmp_path / "ready").exists()


def test_without_a_file_it_tells_all_the_same(clock: FakeClock) -> None:
    pulse = Pulse(None)
    pulse.set_ready(True)
    clock.move(2 * BEAT_EVERY)
    pulse.beat()
    assert pulse.ready() and pulse.alive()
    pulse.set_ready(False)
    assert not pulse.ready()


def test_many_are_ready_when_all_are_and_alive_while_each_moves(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    pulses = Pulses(files)
    assert (pulses.ready(), pulses.alive()) == (False, True), "not started is not stuck"
    files[0].touch()
    assert not pulses.ready()
    files[1].touch()
    assert pulses.ready() and pulses.alive()
    old = time.time() - STUCK_AFTER - 1
    os.utime(files[1], (old, old))
    assert not pulses.alive()


@contextmanager
def served(pulse: Pulse) -> Iterator[str]:
    registry = CollectorRegistry()
    Counter("seen", "Seen.", registry=registry).inc(7)
    server = serve("127.0.0.1", 0, pulse, lambda: registry)
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_probes_and_metrics_over_http(clock: FakeClock) -> None:
    pulse = Pulse(None)
    with served(pulse) as url:
        assert get(f"{url}/readyz") == (503, "not yet\n")
        assert get(f"{url}/livez") == (200, "ok\n")
        pulse.set_ready(True)
        assert get(f"{url}/readyz") == (200, "ok\n")
        assert get(f"{url}/nowhere")[0] == 404
        status, text = get(f"{url}/metrics")
        assert (status, "seen_total 7.0" in text) == (200, True)
        clock.move(STUCK_AFTER + 1)
        assert get(f"{url}/livez")[0] == 503


def test_a_port_that_is_taken_is_named() -> None:
    server = serve("127.0.0.1", 0, Pulse(None), CollectorRegistry)
    try:
        with pytest.raises(OperationError, match=rf"127\.0\.0\.1:{server.server_port}"):
            serve("127.0.0.1", server.server_port, Pulse(None), CollectorRegistry)
    finally:
        server.shutdown()
        server.server_close()
