"""Client work at sites across the network, as the round loop sees it. The server's side.

Design note: nothing here survives a restart, and nothing has to. What a site has sent lies in the
upload store; a server that comes back posts the same task again, takes what is there, and waits for
the rest. An update is dropped from the store only once the journal has it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedot.cards import ResultCard, TaskCard
from fedot.journal import write_durably
from fedot.messages import ClientFailure, ClientInfo, ClientResult, RoundTask, digest_of
from fedot.transport.board import Board, Posted
from fedot.transport.shelf import Shelf
from fedot.transport.upload import Committed, UploadStore

__all__ = ["STATE_FILE", "RemoteEngine"]

logger = logging.getLogger(__name__)

STATE_FILE = "state"
"""The one file of a state's digest on the shelf."""
# How long to wait for an event before looking at the deadline again.
_TICK_S = 1.0


class RemoteEngine:
    """An `Engine` over the sites that call in.

    Args:
        board: where tasks are posted.
        uploads: what sites have sent.
        shelf: where they get the state.
        folder: for the state's bytes while they are offered.
        infos: everybody who can be drawn.
        should_stop: asked while it waits; a reason ends the round's work without an answer.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        board: Board,
        uploads: UploadStore,
        shelf: Shelf,
        folder: Path,
        infos: Sequence[ClientInfo],
        should_stop: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self._uploads = uploads
        self._shelf = shelf
        self._folder = folder
        self._infos = sorted(infos, key=lambda info: info.name)
        self._should_stop = should_stop
        self._clock = clock
        self._cancelled: set[str] = set()

    def clients(self) -> Sequence[ClientInfo]:
        """Who can be drawn, by name."""
        return self._infos

    def run(self, task: RoundTask, cohort: Sequence[str]) -> Iterator[ClientResult | ClientFailure]:
        """Ask a cohort; ends when everybody has answered, or at the deadline with a quorum."""
        # The journal has what came before.
        self._uploads.drop(task.run_id, task.round - 1)
        if not cohort:
            return
        self._post(task, cohort)
        missing = set(cohort)
        try:
            for result in self._answers(task, missing, len(cohort)):
                missing.discard(result.client)
                yield result
        finally:
            self._board.retract()
        if self._is_stopped(task):
            return
        for name in sorted(missing):
            yield ClientFailure(name, task.round, f"late: no update within {task.deadline_s:g} s")

    def cancel(self, task_id: str) -> None:
        """Stop waiting for a task."""
        self._cancelled.add(task_id)
        self._board.wake()

    def _is_stopped(self, task: RoundTask) -> bool:
        return task.task_id in self._cancelled or self._should_stop() is not None

    def _post(self, task: RoundTask, cohort: Sequence[str]) -> None:
        digest = digest_of(task.state)
        path = self._folder / f"state-{task.round}"
        self._folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, task.state)
        self._shelf.put(digest, {STATE_FILE: path})
        for old in self._folder.glob("state-*"):
            if old != path:
                old.unlink()
        cards = {name: TaskCard.of(task, name, digest).model_dump_json() for name in cohort}
        self._board.post(Posted(task.run_id, task.round, digest, cards, task.deadline_s))

    def _answers(
        self, task: RoundTask, missing: set[str], num_asked: int
    ) -> Iterator[ClientResult | ClientFailure]:
        """Results and failures of those who are missing, as they come; each site once."""
        ends = None if task.deadline_s is None else self._clock() + task.deadline_s
        enough = num_asked if task.quorum is None else task.quorum
        num_good = 0
        for committed in self._uploads.committed(task.run_id, task.round):
            if committed.site in missing:
                num_good += 1
                yield _result(task, committed)
        while missing and not self._is_stopped(task):
            late = ends is not None and self._clock() >= ends
            if late and num_good >= enough:
                return
            event = self._board.next_event(_TICK_S)
            if event is None or (event.run_id, event.round) != (task.run_id, task.round):
                continue
            if event.kind == "wake" or event.site not in missing:
                continue
            if event.kind == "arrived":
                found = self._uploads.committed(task.run_id, task.round)
                num_good += 1
                yield _result(task, next(each for each in found if each.site == event.site))
            else:
                yield ClientFailure(event.site, task.round, event.reason)


def _result(task: RoundTask, committed: Committed) -> ClientResult:
    """What a site sent."""
    card = ResultCard.read(committed.metadata)
    payload = committed.path.read_bytes()
    return card.result(committed.site, task.round, committed.digest, payload)
