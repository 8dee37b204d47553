"""What may happen to a worker and must do no harm; a planted bug makes harm of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from stream_scorer.kafka.consumer import Turn
from stream_scorer.kafka.exactly_once import ExactlyOnce
from stream_scorer.protocol import Answer


def induced_abort() -> None:
    """The third transaction fails when its offsets are sent, its records produced."""
    send_offsets = ExactlyOnce._send_offsets
    calls = 0

    def fail_once(self: ExactlyOnce, next_offsets: dict[int, int], metadata: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KafkaException(
                KafkaError(KafkaError.ILLEGAL_GENERATION, "induced", False, False, True)
            )
        send_offsets(self, next_offsets, metadata)

    ExactlyOnce._send_offsets = fail_once  # type: ignore[method-assign]


def in_halves() -> None:
    """Every turn is delivered in two transactions, as after a record that was refused."""
    deliver = ExactlyOnce.deliver

    def halves(self: ExactlyOnce, turn: Turn, answers: Sequence[Answer]) -> None:
        middle = len(answers) // 2
        for half in (answers[:middle], answers[middle:]):
            if half:
                deliver(self, turn, half)

    ExactlyOnce.deliver = halves  # type: ignore[method-assign]


ALL: Final[Mapping[str, Callable[[], None]]] = {
    "induced_abort": induced_abort,
    "in_halves": in_halves,
}
