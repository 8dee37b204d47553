"""A contender's process: started, waited for, and ended as its users would end it."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.case import ONE_THREAD, ROOT, RunFailed
from benchmarks.contender import Command
from benchmarks.measure import Usage, usage

LOOK_EVERY: Final = 0.05
START_TIMEOUT: Final = 120.0
_STOP_TIMEOUT: Final = 30.0


class ContenderProcess:
    """A contender's process, its log in a file."""

    def __init__(self, name: str, command: Command, folder: Path) -> None:
        self._name = name
        self._url = command.ready_url
        self._log = folder / "log"
        environment: Mapping[str, str] = {**os.environ, **ONE_THREAD, **command.environment}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command.arguments,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """The end of what it has said."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-20:])

    def usage(self) -> Usage:
        """What it and its children have used so far."""
        return usage([self._process.pid])

    def wait(self, seconds: float) -> None:
        """Let it work.

        Raises:
            RunFailed: it has ended.
        """
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        raise RunFailed(f"{self._name} ended with {code}\n{self.log}")

    def wait_ready(self) -> None:
        """Wait until it says that it is ready, where it can be asked."""
        deadline = time.monotonic() + START_TIMEOUT
        while self._url is not None:
            try:
                with urllib.request.urlopen(self._url, timeout=1):  # noqa: S310  # our own http:
                    return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    raise RunFailed(f"{self._name} is not ready\n{self.log}") from None
            self.wait(LOOK_EVERY)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def children(self) -> list[int]:
        """The processes that it has started and that run."""
        pid = self._process.pid
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(child) for child in listed.split()]

    def stop(self) -> None:
        """End it: as its users would, or else by force."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
