"""The long run: every kind of fault, hundreds of times, on a broker of its own.

    python -m tests.faults.soak [SUMMARY.md]

``SOAK_REQUESTS``, ``SOAK_KILLS``, ``SOAK_FAILPOINTS`` and ``SOAK_MINUTES`` change its size. It
runs rounds of each mode in turn until all of them are reached, prints a line for each, and writes
a summary in Markdown; exit code 1 when a promise was broken.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic

from stream_scorer import __version__
from tests.conftest import wait_for_leaders
from tests.faults.faults import crash_broker, freeze_broker, kill_at, places_of
from tests.faults.late_end import LateEnd
from tests.faults.planted_cases import CASES, Case, late_commit_case
from tests.faults.run import Run, running
from tests.faults.verifier import Verdict
from tests.kafka_server import KAFKA_VERSION, KafkaServer

REQUESTS: Final = int(os.environ.get("SOAK_REQUESTS", "500000"))
KILLS: Final = int(os.environ.get("SOAK_KILLS", "300"))
FAILPOINTS: Final = int(os.environ.get("SOAK_FAILPOINTS", "20"))
MINUTES: Final = float(os.environ.get("SOAK_MINUTES", "30"))
SUMMARY: Final = Path("docs/soak.md")

DELIVERIES: Final = ("exactly_once", "at_least_once")
KINDS: Final = ("requests", "results", "replies", "dead_letters")
PARTITIONS: Final = 6
ROUND_KILLS: Final = 30
ROUND_FAILPOINTS: Final = 4
"""Times that a round comes by every failpoint."""

ROUND_REQUESTS: Final = max(500, REQUESTS * ROUND_KILLS // max(1, KILLS))
SETTLE: Final = 180.0
COLUMNS: Final = (
    "mode",
    "rounds",
    "requests",
    "kills",
    "kills at a failpoint",
    "zombies",
    "broker hung or killed",
    "workers that ended by themselves",
    "answers",
    "answered again",
    "aborted records",
    "slowest next commit",
    "broken promises",
)
HEADING: Final = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


@dataclass(slots=True)
class Total:
    """What the rounds of one mode came to, together."""

    rounds: int = 0
    requests: int = 0
    answers: int = 0
    duplicated: int = 0
    allowed: int = 0
    aborted: int = 0
    kills: int = 0
    at_failpoints: int = 0
    zombies: int = 0
    broker_faults: int = 0
    ended_alone: int = 0
    slowest: float = 0.0
    broken: list[str] = field(default_factory=list)

    def add(self, run: Run, verdict: Verdict) -> None:
        self.rounds += 1
        self.requests += verdict.requests
        self.answers += verdict.answers
        self.duplicated += verdict.duplicated
        self.allowed += verdict.duplicates_allowed
        self.aborted += verdict.aborted
        self.ended_alone += run.ended_alone
        self.broken += verdict.failures
        self.slowest = max([self.slowest, *run.next_commits()])


def main() -> int:
    """Run it; the exit code says whether every promise was kept and every planted bug found."""
    began = time.monotonic()
    totals = {delivery: Total() for delivery in DELIVERIES}
    found: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="stream-scorer-soak-") as name,
        LateEnd() as proxy,
        KafkaServer(proxy.port) as server,
    ):
        folder = Path(name)
        proxy.upstream = server.upstream
        say(
            f"{REQUESTS} requests, {KILLS} kills, every failpoint {FAILPOINTS} times, {MINUTES} min"
        )
        for case in (*CASES, late_commit_case(proxy, reset=False)):
            found[case.bug] = plant(server, folder, case)
            say(f"planted {case.bug}: {found[case.bug]}")
        while not enough(totals, time.monotonic() - began):
            for delivery in DELIVERIES:
                try:
                    one_round(server, folder, delivery, totals[delivery])
                except Exception:  # noqa: BLE001 - a round that fails is told, and fails the soak
                    traceback.print_exc()
                    totals[delivery].broken.append("a round did not come to its end")
            minutes = (time.monotonic() - began) / 60
            write(summary(totals, found, minutes))
            say(f"after {minutes:.0f} min: {totals}")
    broken = [each for total in totals.values() for each in total.broken]
    missed = [bug for bug, shown in found.items() if shown == "NOT FOUND"]
    say(f"broken: {broken or 'nothing'}; planted bugs not found: {missed or 'none'}")
    return 1 if broken or missed else 0


def plant(server: KafkaServer, folder: Path, case: Case) -> str:
    """Run with a planted bug; what the checker found of it."""
    try:
        with a_run(server, folder, case.make) as run:
            verdict = case.scenario(run, [case.bug])
    except Exception:  # noqa: BLE001 - a run that fails has found nothing
        traceback.print_exc()
        return "NOT FOUND"
    shown = [each for each in verdict.failures if each.startswith(case.shows)]
    return ", ".join(shown) or "NOT FOUND"


def enough(totals: dict[str, Total], seconds: float) -> bool:
    return seconds >= 60 * MINUTES and (
        sum(total.requests for total in totals.values()) >= REQUESTS
        and sum(total.kills for total in totals.values()) >= KILLS
        and all(
            total.at_failpoints >= FAILPOINTS * len(places_of(delivery))
            for delivery, total in totals.items()
        )
    )


def one_round(server: KafkaServer, folder: Path, delivery: str, total: Total) -> None:
    """Kills at random and at every failpoint, zombies, and a broker that hangs and crashes."""
    session = 6.0 if delivery == "exactly_once" else 2.0

    def make(make_run: Callable[..., Run]) -> Run:
        return make_run(delivery, requests=ROUND_REQUESTS, session_timeout=session, predict_ms=2.0)

    with a_run(server, folder, make) as run:
        faults: list[Callable[[], None]] = []

        def kill() -> None:
            run.kill(run.victim())
            total.kills += 1

        def at_failpoint(name: str) -> None:
            kill_at(run, name)
            total.at_failpoints += 1

        def zombie() -> None:
            run.freeze(run.victim(), 2 * session)
            total.zombies += 1

        def broker(fault: Callable[[KafkaServer], None]) -> None:
            run.everyone_hit(partial(fault, server))
            total.broker_faults += 1

        faults += [kill] * ROUND_KILLS
        faults += [partial(at_failpoint, name) for name in places_of(delivery)] * ROUND_FAILPOINTS
        faults += [zombie] * 2
        faults += [partial(broker, freeze_broker), partial(broker, crash_broker)]
        run.random.shuffle(faults)
        with running(run, slots=3):
            for number, fault in enumerate(faults):
                run.pace(number, len(faults))
                fault()
                run.ended_alone += run.fleet.revive()
            verdict = run.verdict(SETTLE, stop=False)
        reasons = run.invalid(len(faults))
        # A zombie may find itself fenced, and each of the three slots a broker that was away.
        if run.ended_alone > 2 * 1 + 2 * 3:
            reasons.append(f"{run.ended_alone} workers ended by themselves")
    total.add(run, verdict)
    total.broken += reasons
    say(f"{verdict.line}{'; INVALID: ' if reasons else ''}{', '.join(reasons)}")


@contextmanager
def a_run(
    server: KafkaServer, folder: Path, make: Callable[[Callable[..., Run]], Run]
) -> Iterator[Run]:
    """A run on topics of its own, which are deleted after it."""
    group = f"soak-{uuid.uuid4()}"
    admin = AdminClient({"bootstrap.servers": server.bootstrap, "log_level": 0})
    names = {kind: f"{group}-{kind}" for kind in KINDS}
    place = folder / group
    place.mkdir()

    def make_run(delivery: str, *, partitions: int = PARTITIONS, **options: object) -> Run:
        made = admin.create_topics([NewTopic(name, partitions) for name in names.values()])
        for name, future in made.items():
            future.result(60)
            wait_for_leaders(admin, name, partitions)
        settings: dict[str, object] = {"partitions": partitions, **options}
        return Run(server.bootstrap, names, group, place, delivery, **settings)  # type: ignore[arg-type]

    yield make(make_run)
    for future in admin.delete_topics([*names.values()]).values():
        future.result(60)


def summary(totals: dict[str, Total], found: dict[str, str], minutes: float) -> str:
    """The result so far, in Markdown."""
    requests = sum(total.requests for total in totals.values())
    kills = sum(total.kills for total in totals.values())
    rows = "\n".join(
        f"| `{delivery}` | {t.rounds} | {t.requests:,} | {t.kills} | {t.at_failpoints}"
        f" | {t.zombies} | {t.broker_faults} | {t.ended_alone} | {t.answers:,} | {t.duplicated:,}"
        f" (bound {t.allowed:,}) | {t.aborted:,} | {t.slowest:.1f} s"
        f" | {', '.join(t.broken) or 'none'} |"
        for delivery, t in totals.items()
    )
    bugs = "\n".join(f"| `{bug}` | {shown} |" for bug, shown in found.items())
    state = "complete" if enough(totals, minutes * 60) else "still running, or ended early"
    return f"""# The last soak

Made by `make soak`, {datetime.now(UTC):%Y-%m-%d}: {state}; {requests:,} requests, {kills} kills at
random times, {minutes:.0f} minutes.
stream-scorer {__version__}, Apache Kafka {KAFKA_VERSION} (one node), confluent-kafka
{confluent_kafka.__version__} (librdkafka {confluent_kafka.libversion()[0]}), Python
{platform.python_version()}; {os.cpu_count()} cores, shared with the broker; 3 workers,
{PARTITIONS} partitions.

A promise is broken when anything is lost, wrong, extra, out of order, held back by an open
transaction, or not passed by the committed offset at the end; when the reader that ran beside the
faults and a fresh one disagree; and, exactly once, when anything is answered twice. The slowest
next commit is that of a worker which started while the broker was away.

{HEADING}
{rows}

Bugs planted in the workers, to check the checker, and what it found:

| bug | found as |
|---|---|
{bugs}
"""


def write(text: str) -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else SUMMARY
    path.write_text(text, encoding="utf-8")


def say(text: str) -> None:
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
