"""Members that join and leave one group at any moment, until the time is over.

    python -m tests.faults.leaving BOOTSTRAP TOPIC DELIVERY SECONDS

A process of its own: a member that hangs as it leaves takes the interpreter's lock with it.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from confluent_kafka.admin import AdminClient

from stream_scorer.config import Settings
from stream_scorer.kafka.consumer import AssignmentListener, RequestConsumer

MEMBERS = 8
TIMEOUT = 10.0


class Member:
    """Commits what it is about to lose, as a worker does."""

    def __init__(self, settings: Settings) -> None:
        def ignore(_: Sequence[int]) -> None:
            """There is nothing to do."""

        # The coordinator takes a static member's join to the end though it is stopped in its
        # first one: it cannot leave, since it does not know its name yet. The next of its slot
        # takes its place.
        self.can_leave = settings.worker.delivery == "at_least_once"
        self.consumer = RequestConsumer(
            settings, AssignmentListener(assigned=self.join, revoked=self.commit, lost=ignore)
        )
        self.consumer.subscribe()
        self.leaving = False
        self.refused = 0

    def join(self, _: Sequence[int]) -> None:
        self.can_leave = True

    def commit(self, partitions: Sequence[int]) -> None:
        self.consumer.commit_failed = False
        if partitions:
            self.consumer.commit(dict.fromkeys(partitions, 0), timeout=TIMEOUT)
        if self.leaving and self.consumer.commit_failed:
            self.refused += 1

    def live(self, chance: random.Random) -> None:
        end = time.monotonic() + chance.uniform(0.5, 3)
        while time.monotonic() < end:
            self.consumer.take(0.05)
        time.sleep(chance.uniform(0, 2))  # a rebalance goes on without us meanwhile
        self.leaving = True
        self.consumer.close(8)


def main() -> None:
    bootstrap, topic, delivery, seconds = sys.argv[1:]
    sections: dict[str, Any] = {
        "kafka": {
            "bootstrap.servers": bootstrap,
            "consumer": {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_000},
        },
        "topics": {"requests": topic},
    }
    end = time.monotonic() + float(seconds)
    left: list[Member] = []
    stayed: list[str] = []
    admin = AdminClient({"bootstrap.servers": bootstrap})

    def come_and_go(slot: int) -> None:
        chance = random.Random(slot)
        worker = {"group": topic, "delivery": delivery, "instance_id": topic, "slot": slot}
        number = 0
        while time.monotonic() < end:
            number += 1
            name = f"{slot}-{number}"
            kafka = sections["kafka"] | {"client.id": name}
            settings = Settings.model_validate(sections | {"worker": worker, "kafka": kafka})
            member = Member(settings)
            member.live(chance)
            left.append(member)
            if member.can_leave and name in clients(topic, admin):
                stayed.append(name)

    with ThreadPoolExecutor(MEMBERS) as threads:
        for done in [threads.submit(come_and_go, slot) for slot in range(MEMBERS)]:
            done.result()
    refused = sum(member.refused for member in left)
    kept = sum(member.consumer.assigned for member in left)
    sys.stdout.write(
        f"{len(left)} left, {refused} could not commit, {kept} kept partitions, "
        f"{len(stayed)} stayed in the group\n"
    )


def clients(group: str, admin: AdminClient) -> set[str]:
    """The names of a group's members, as its coordinator sees them."""
    (described,) = admin.describe_consumer_groups([group], request_timeout=TIMEOUT).values()
    return {member.client_id for member in described.result(TIMEOUT).members}


if __name__ == "__main__":
    main()
