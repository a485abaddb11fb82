"""How far transfers are, in words: bytes, rate, time left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from fedot.report.formats import in_bytes, in_seconds

__all__ = ["Transfers"]

# The rate is that of the last seconds: of a link that became slow, an average would be wrong.
_WINDOW_S = 10.0
_BETWEEN_MARKS_S = 0.5
_BETWEEN_LINES_S = 30.0
# Adapters' states and updates come every round; only what takes a while is worth a line.
_LARGE_BYTES = 2**23


@dataclass(slots=True)
class _Transfer:
    began: float
    told: float
    marks: deque[tuple[float, int]] = field(default_factory=deque)


class Transfers:
    """All transfers that are open.

    Args:
        clock: seconds, never backwards.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._open: dict[str, _Transfer] = {}

    def moved(self, name: str, done: int, total: int) -> tuple[str, str | None]:
        """How a transfer stands, and a line to be said of it, if it is time for one.

        Args:
            name: of the transfer.
            done: bytes so far, those of an earlier try too.
            total: bytes in all; with `done` there, it has ended.
        """
        now = self._clock()
        transfer = self._open.setdefault(name, _Transfer(now, now))
        state = f"{in_bytes(done)} of {in_bytes(total)}{_pace(transfer.marks, now, done, total)}"
        if done >= total:
            del self._open[name]
            took = now - transfer.began
            is_long = total >= _LARGE_BYTES or took >= _BETWEEN_LINES_S
            return state, f"{name}: {in_bytes(total)} in {in_seconds(took)}" if is_long else None
        if now - transfer.told < _BETWEEN_LINES_S:
            return state, None
        transfer.told = now
        return state, f"{name}: {state}"


def _pace(marks: deque[tuple[float, int]], now: float, done: int, total: int) -> str:
    if not marks or now - marks[-1][0] >= _BETWEEN_MARKS_S:
        marks.append((now, done))
    while now - marks[0][0] > _WINDOW_S and len(marks) > 2:
        marks.popleft()
    seconds, num_bytes = now - marks[0][0], done - marks[0][1]
    if seconds <= 0 or num_bytes <= 0:
        return ""
    rate = num_bytes / seconds
    return f", {in_bytes(rate)}/s, {in_seconds((total - done) / rate)} left"
