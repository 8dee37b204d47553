"""One background thread that runs calls in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")


class BackgroundThread(Generic[ArgumentT, ResultT]):
    """Runs one function in a thread of its own, a call at a time.

    The thread is a daemon, unlike those of ``ThreadPoolExecutor``: a call that hangs cannot keep
    the process from ending.
    """

    def __init__(self, function: Callable[[ArgumentT], ResultT], name: str) -> None:
        self._function = function
        self._calls: queue.SimpleQueue[tuple[ArgumentT, Future[ResultT]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, argument: ArgumentT) -> Future[ResultT]:
        """Have the function called with this; its result or exception comes by the future."""
        future: Future[ResultT] = Future()
        self._calls.put((argument, future))
        return future

    def _run(self) -> None:
        while True:
            self._call(*self._calls.get())

    # A call of its own, so that nothing of it is held until the next one comes.
    def _call(self, argument: ArgumentT, future: Future[ResultT]) -> None:
        try:
            result = self._function(argument)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            future.set_exception(error)
        else:
            future.set_result(result)
