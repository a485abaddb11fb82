"""Where client work runs, as the round loop sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from fedot.messages import ClientFailure, ClientInfo, ClientResult, RoundTask

__all__ = ["Engine"]


class Engine(Protocol):
    """Runs tasks at clients; results and failures arrive as they happen."""

    def clients(self) -> Sequence[ClientInfo]:
        """Who can be drawn, by name."""
        ...

    def run(self, task: RoundTask, cohort: Sequence[str]) -> Iterator[ClientResult | ClientFailure]:
        """Do a task at every client of a cohort."""
        ...

    def cancel(self, task_id: str) -> None:
        """Stop working on a task as soon as possible."""
        ...
