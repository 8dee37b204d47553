"""The thread that may be left behind, and is not left for nothing."""

from __future__ import annotations

import threading

from stream_scorer.background import BackgroundThread


def test_calls_are_made_in_order_and_the_thread_ends_with_the_last_reference() -> None:
    made: list[int] = []
    background = BackgroundThread(made.append, "counting")
    (thread,) = [each for each in threading.enumerate() if each.name == "counting"]
    last = [background.submit(number) for number in range(3)][-1]
    del background
    last.result(5)
    thread.join(5)
    assert made == [0, 1, 2]
    assert not thread.is_alive()
