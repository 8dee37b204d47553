"""Which offsets may be committed: the contiguous prefix of what is finished, by partition."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Partition:
    # Offsets have gaps (transaction markers, compaction), so what is in flight is listed.
    in_flight: deque[int] = field(default_factory=deque)
    early: set[int] = field(default_factory=set)
    next_offset: int | None = None


class OffsetTracker:
    """Follows every request from its start to the delivery of its answer.

    ``committable`` never passes an offset that is started and not finished: whatever dies, the
    requests behind it are read again. Pure; used by one thread.
    """

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}

    def started(self, partition: int, offset: int) -> None:
        """A request is in hand; to be called in the order of offsets."""
        state = self._partitions.get(partition)
        if state is None:
            state = self._partitions[partition] = _Partition()
        state.in_flight.append(offset)

    def finished(self, partition: int, offset: int) -> None:
        """A request's answer is delivered. Of a forgotten partition: ignored."""
        state = self._partitions.get(partition)
        if state is None or not state.in_flight:
            return
        if state.in_flight[0] != offset:
            if offset > state.in_flight[0]:
                state.early.add(offset)
            return
        state.in_flight.popleft()
        state.next_offset = offset + 1
        while state.in_flight and state.in_flight[0] in state.early:
            done = state.in_flight.popleft()
            state.early.remove(done)
            state.next_offset = done + 1

    def committable(self, partitions: Iterable[int] | None = None) -> dict[int, int]:
        """The next offset to read, by partition, where anything is finished."""
        return {
            partition: state.next_offset
            for partition in (self._partitions if partitions is None else partitions)
            if (state := self._partitions.get(partition)) is not None
            and state.next_offset is not None
        }

    def in_flight(self) -> int:
        """How many requests are started and not finished."""
        return sum(len(state.in_flight) for state in self._partitions.values())

    def forget(self, partitions: Iterable[int]) -> None:
        """The partitions are no longer ours."""
        for partition in partitions:
            self._partitions.pop(partition, None)
