"""Named places where a test ends, stops or delays the process; nothing happens unless asked for.

``SCORER_FAILPOINT=after_begin:kill`` kills the process when it first gets there, ``:kill:5`` at the
fifth time; several are separated by commas. Actions: ``kill`` (SIGKILL), ``stop`` (SIGSTOP),
``raise``, ``sleep=SECONDS``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

from stream_scorer.errors import OperationError, SetupError

VARIABLE: Final = "SCORER_FAILPOINT"

Name = Literal[
    "after_poll",
    "after_decode",
    "after_predict",
    "after_begin",
    "mid_produce",
    "after_produce",
    "after_send_offsets",
    "after_commit",
    "before_close",
]
NAMES: Final[tuple[str, ...]] = Name.__args__  # type: ignore[attr-defined]  # a Literal's values


class FailpointReached(OperationError):
    """A failpoint was told to raise."""


_armed: dict[str, Callable[[], None]] = {}


def failpoint(name: Name) -> None:
    """Do what was asked for at this place."""
    action = _armed.get(name)
    if action is not None:
        action()


def arm(environ: Mapping[str, str]) -> None:
    """Read what is asked for from the environment.

    Raises:
        SetupError: an unknown place or action.
    """
    _armed.clear()
    for text in filter(None, environ.get(VARIABLE, "").split(",")):
        name, _, rest = text.partition(":")
        action, _, count = rest.partition(":")
        if name not in NAMES or (count and not count.isdigit()):
            raise SetupError(f"{text!r} is no failpoint @ {VARIABLE}")
        _armed[name] = _at(int(count or 1), _action(name, action))


def _action(name: str, text: str) -> Callable[[], None]:
    kind, _, argument = text.partition("=")
    if kind == "kill":
        return lambda: os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop":
        return lambda: os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "sleep":
        return lambda: time.sleep(float(argument))
    if kind == "raise":

        def fail() -> None:
            raise FailpointReached(f"failpoint {name}")

        return fail
    raise SetupError(f"{text!r} is no action of a failpoint @ {VARIABLE}")


def _at(count: int, action: Callable[[], None]) -> Callable[[], None]:
    reached = 0

    def act() -> None:
        nonlocal reached
        reached += 1
        if reached == count:
            action()

    return act
