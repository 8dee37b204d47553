"""Faults that more than one suite makes happen."""

from __future__ import annotations

import time
from typing import Final

from stream_scorer import failpoints
from tests.faults.fleet import START_TIMEOUT
from tests.faults.run import Run
from tests.kafka_server import KafkaServer

TRANSACTIONAL: Final = frozenset({"after_begin", "after_send_offsets"})
"""Places that only exactly-once delivery comes by."""

PAST_PATIENCE: Final = 12.0
"""Seconds, past the workers' session timeout and past the client's patience with a request."""


def places_of(delivery: str) -> list[str]:
    """The failpoints that a mode comes by."""
    return [
        name for name in failpoints.NAMES if delivery == "exactly_once" or name not in TRANSACTIONAL
    ]


def kill_at(run: Run, name: str, visit: int = 3) -> None:
    """Replace a worker by one that dies at a failpoint, and that one by a sound one.

    Args:
        run: whose worker; requests trickle in until it has come by ``visit`` times.
        name: the failpoint.
        visit: at which time it dies.
    """
    deadline = time.monotonic() + START_TIMEOUT
    slot = run.victim()
    run.deaths += 2  # that of the worker in its place, and its own
    run.fleet.kill(slot)
    closing = name == "before_close"
    # At its end it comes by once; it has to be told to end.
    armed = run.fleet.start(slot, failpoint=f"{name}:kill:{1 if closing else visit}")
    if closing:
        run.fleet.wait_ready(armed)
        armed.popen.terminate()
    while armed.running and time.monotonic() < deadline:
        run.trickle(30)
        time.sleep(0.3)
    run.fleet.wait_killed(armed)
    run.fleet.start(slot)


def freeze_broker(server: KafkaServer) -> None:
    """SIGSTOP for a while: connections stay open and nothing answers."""
    server.pause()
    try:
        time.sleep(PAST_PATIENCE)
    finally:
        server.resume()


def crash_broker(server: KafkaServer) -> None:
    """SIGKILL, and a start on the same data."""
    server.kill()
    time.sleep(1)
    server.start()
