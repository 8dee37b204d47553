"""One background thread that runs calls in order."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")


class BackgroundThread(Generic[ArgumentT, ResultT]):
    """Runs one function in a thread of its own, a call at a time.

    The thread is a daemon, unlike those of ``ThreadPoolExecutor``: a call that hangs cannot keep
    the process from ending. It ends with this object, once the calls before are done.
    """

    def __init__(self, function: Callable[[ArgumentT], ResultT], name: str) -> None:
        calls: queue.SimpleQueue[tuple[ArgumentT, Future[ResultT]] | None] = queue.SimpleQueue()
        self._calls = calls
        # It holds nothing of ours.
        threading.Thread(target=_run, args=(function, calls), name=name, daemon=True).start()
        weakref.finalize(self, calls.put, None)

    def submit(self, argument: ArgumentT) -> Future[ResultT]:
        """Have the function called with this; its result or exception comes by the future."""
        future: Future[ResultT] = Future()
        self._calls.put((argument, future))
        return future


def _run(
    function: Callable[[ArgumentT], ResultT],
    calls: queue.SimpleQueue[tuple[ArgumentT, Future[ResultT]] | None],
) -> None:
    while _answer(function, calls.get()):
        pass


# A call of its own, so that nothing of it is held until the next one comes.
def _answer(
    function: Callable[[ArgumentT], ResultT], call: tuple[ArgumentT, Future[ResultT]] | None
) -> bool:
    if call is None:
        return False
    argument, future = call
    try:
        result = function(argument)
    except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
        future.set_exception(error)
    else:
        future.set_result(result)
    return True
