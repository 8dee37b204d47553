"""The facade's memory stays bounded, whatever callers send at it and do not read."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stream_scorer.kafka.clients import FETCH_BYTES
from tests.echo_worker import Asked, EchoWorker, Sent, reply
from tests.facade_server import Server, running, until
from tests.integration.test_facade_raw import rest, statuses
from tests.integration.test_facade_server import alter
from tests.kafka_server import MakeTopics

MiB = 1024 * 1024
KINDS = ("requests", "results", "replies", "dead_letters")

TIMEOUT = 4
BUDGET = 16 * MiB
PAYLOAD = 2_000_000
RESULT = 6_000_000
SENDERS = 300
READERS = 40

BOUND = (
    BUDGET  # payloads that are being received
    + 2 * BUDGET  # the producer's queue, and its records once more as they are written
    + 2 * 2 * FETCH_BYTES  # replies: the queue and one fetch, and what the thread took of them
    + 3 * BUDGET  # answers: Python 3.11 copies twice what a socket does not take
    + 32 * MiB  # what allocators keep, and hundreds of connections
)
"""Growth allowed. Without the bounds, the senders bring 600 MB and the readers leave 240 MB."""


def resident(server: Server, line: str) -> int:
    """A line of the serving process's memory, in bytes: ``VmRSS``, or ``VmHWM`` for its peak."""
    master = server.process.pid
    (worker,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    status = Path(f"/proc/{worker}/status").read_text()
    (found,) = [text for text in status.splitlines() if text.startswith(f"{line}:")]
    return int(found.split()[1]) * 1024


def answer(asked: Asked) -> Iterable[Sent]:
    """Nothing to those that only send, much to those that do not read, an echo to others."""
    if asked.payload.startswith(b"only"):
        return []
    sent = reply(asked)
    if asked.payload == b"much":
        return [Sent(sent.topic, sent.partition, sent.headers, MUCH)]
    return [sent]


MUCH = os.urandom(RESULT)


def send(server: Server, *, whole: bool) -> tuple[int, ...]:
    """Send a large body, or all but its last byte; what is answered, nothing if it was cut off."""
    body = b"only".ljust(PAYLOAD, b"x")
    head = (
        b"POST /api/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        try:
            client.sendall(head % PAYLOAD + (body if whole else body[:-1]))
            return tuple(statuses(rest(client)))
        except ConnectionError:
            return ()


def ask_and_not_read(server: Server) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(60)
    client.connect(("127.0.0.1", server.port))
    client.sendall(b"POST /api/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nmuch")
    return client


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_times_the_load_does_not_grow_the_facade(
    real_kafka: str, topics: MakeTopics, tmp_path: Path
) -> None:
    names = dict(zip(KINDS, topics(4, *KINDS), strict=True))
    for kind in ("requests", "replies"):
        alter(real_kafka, names[kind], "max.message.bytes", "10000000")
    environ = {
        "SCORER_KAFKA_BOOTSTRAP_SERVERS": real_kafka,
        **{f"SCORER_TOPICS_{kind.upper()}": name for kind, name in names.items()},
        "SCORER_FACADE_TIMEOUT": str(TIMEOUT),
        "SCORER_FACADE_MAX_PENDING_BYTES": str(BUDGET),
        "SCORER_LIMITS_PAYLOAD_BYTES": str(PAYLOAD),
        "SCORER_LIMITS_RESULT_BYTES": str(RESULT),
    }
    with (
        running(tmp_path / "facade.log", environ) as server,
        EchoWorker(real_kafka, names["requests"], answer) as worker,
        ThreadPoolExecutor(SENDERS) as callers,
    ):
        until(server.is_ready)
        assert server.predict(b"before").status == 200
        before = resident(server, "VmRSS")
        process = server.status()["system"]["pid"]

        sending = [callers.submit(send, server, whole=n % 2 == 0) for n in range(SENDERS)]
        ends = Counter(done.result() for done in sending)
        grown = resident(server, "VmHWM") - before
        sys.stdout.write(f"senders: {grown / MiB:.0f} MiB more, {dict(ends)}\n")
        assert grown < BOUND
        # Many were refused, or cut off where they went on sending, some taken, and nobody was told
        # anything else.
        assert ends[503,] + ends[()] > SENDERS / 4
        assert ends[503,] > 0
        assert ends[504,] > 0
        assert ends.keys() <= {(), (408,), (503,), (504,)}
        assert server.predict(b"between").status == 200

        readers = [ask_and_not_read(server) for _ in range(READERS)]
        until(lambda: sum(asked.payload == b"much" for asked in worker.asked) == READERS)
        until(lambda: server.status()["kafka"]["pending"] == 0)
        grown = resident(server, "VmHWM") - before
        sys.stdout.write(f"readers: {grown / MiB:.0f} MiB more\n")
        assert grown < BOUND
        # Those who did not read are given up, and leave room for those who do.
        until(lambda: server.predict(b"much").body == MUCH)
        for reader in readers:
            reader.close()
        assert server.predict(b"after").status == 200
        assert server.status()["system"]["pid"] == process
    sys.stdout.write(f"allowed: {BOUND / MiB:.0f} MiB\n")
