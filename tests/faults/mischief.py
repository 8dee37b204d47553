"""A worker's answers with all that may happen to replies, and what the facade must make of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from tests.echo_worker import Asked, Sent, reply
from tests.faults.callers import Call

RATE: Final = 0.05
"""Of the requests, how many each of the mischiefs happens to."""

COUNTED: Final = ("requests", "replies", "timeouts", "late", "duplicate", "orphan", "foreign")
"""The counts of ``/api/status`` that follow from what was done."""


class Mischief:
    """Answers each request with its payload, and some of them with more or at another time.

    What happens to a request is drawn from the seed and its payload, so that it does not depend
    on the order in which requests come. Payloads must differ.

    Args:
        seed: of the dice.
        timeout: the facade's, in seconds.
    """

    def __init__(self, seed: int, timeout: float) -> None:
        self._seed = seed
        self._timeout = timeout
        self._partition_of: dict[bytes, int] = {}  # by the facade process's name
        self._asker: dict[bytes, bytes] = {}  # by payload
        self._replies: Counter[bytes] = Counter()  # true ones, by payload
        self._addressed: Counter[tuple[int, bytes]] = Counter()  # all, by partition and name
        self._unasked: Counter[tuple[int, bytes]] = Counter()  # those with an id nobody gave
        self.done: Counter[str] = Counter()
        """How often each mischief happened."""

    def __call__(self, asked: Asked) -> list[Sent]:
        dice = random.Random(f"{self._seed}/{asked.payload.decode()}")
        name, _, number = asked.headers["correlation-id"].partition(b".")
        self._asker[asked.payload] = name
        self._partition_of[name] = int(asked.headers["reply-partition"])
        answers: list[Sent] = []
        if self._happens(dice, "forged"):
            # Its process and its form are right, so that only the number can tell.
            guess = f"{dice.getrandbits(128):032x}".encode()
            answers.append(self._strange(asked, name, guess))
        if self._happens(dice, "foreign"):
            others = sorted(self._partition_of.keys() - {name})
            other = dice.choice(others) if others else b"0" * 16
            answers.append(self._strange(asked, other, number))
        delay = 0.0
        if self._happens(dice, "delayed"):
            delay = self._timeout * dice.uniform(0.05, 0.4)
        elif self._happens(dice, "too_late"):
            delay = self._timeout * dice.uniform(1.1, 1.4)
        answers.append(self._true(asked, delay))
        if self._happens(dice, "duplicated"):
            answers.append(self._true(asked, delay + dice.uniform(0.0, 0.2)))
        return answers

    def expected(self, calls: Iterable[Call]) -> dict[str, dict[str, int]]:
        """What each facade process has to have counted, by its name, once it has read all.

        Args:
            calls: every call that was made, of which some were answered and the others timed out.
        """
        counts = {
            name: {
                "orphan": self._unasked[place, name],
                "foreign": sum(
                    sent
                    for (partition, other), sent in self._addressed.items()
                    if partition == place and other != name
                ),
                **dict.fromkeys(("requests", "replies", "timeouts", "late", "duplicate"), 0),
            }
            for name, place in self._partition_of.items()
        }
        for call in calls:
            of_asker = counts[self._asker[call.payload]]
            sent = self._replies[call.payload]
            of_asker["requests"] += 1
            if call.status == 200:
                of_asker["replies"] += 1
                of_asker["duplicate"] += sent - 1
            else:
                of_asker["timeouts"] += 1
                of_asker["late"] += sent
        return {name.decode(): of_one for name, of_one in counts.items()}

    def _happens(self, dice: random.Random, mischief: str) -> bool:
        happens = dice.random() < RATE
        self.done[mischief] += happens
        return happens

    def _true(self, asked: Asked, delay: float) -> Sent:
        sent = reply(asked)
        self._replies[asked.payload] += 1
        name = asked.headers["correlation-id"].partition(b".")[0]
        self._addressed[sent.partition, name] += 1
        return replace(sent, delay=delay)

    def _strange(self, asked: Asked, name: bytes, number: bytes) -> Sent:
        sent = reply(asked, correlation_id=name + b"." + number)
        self._addressed[sent.partition, name] += 1
        self._unasked[sent.partition, name] += 1
        return replace(sent, body=b"another's: " + asked.payload)
