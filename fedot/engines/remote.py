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

from fedot.cards import ResultCard, RunCard, TaskCard
from fedot.errors import WireError
from fedot.journal import write_durably
from fedot.messages import ClientFailure, ClientInfo, ClientResult, RoundTask, digest_of
from fedot.transport.board import Board
from fedot.transport.notices import Posted
from fedot.transport.shelf import Shelf
from fedot.transport.upload import Committed, UploadStore

__all__ = ["STATE_FILE", "RemoteEngine", "most_update_bytes"]

logger = logging.getLogger(__name__)

STATE_FILE = "state"
"""The one file of a state's digest on the shelf."""
# How long to wait for an event before looking at the deadline again.
_TICK_S = 1.0
# Twice what float32 takes: more than any chain does, positions and scales included. And room for
# manifest and heads, which are all that a small update is made of.
_BYTES_PER_VALUE = 8
_ROOM_BYTES = 2**20


def most_update_bytes(num_values: int) -> int:
    """No update of so many values is larger, whichever chain it went through."""
    return _BYTES_PER_VALUE * num_values + _ROOM_BYTES


class RemoteEngine:
    """An `Engine` over the sites that call in.

    Args:
        board: where tasks are posted.
        uploads: what sites have sent.
        shelf: where they get the state.
        folder: for the state's bytes while they are offered.
        infos: everybody who can be drawn.
        num_received: how many updates of a round the journal has: those from before a restart
            count for the quorum, and those that were no good do not.
        is_admitted: whether a site may call at all; one that may not is not waited for.
        look: called while it waits, about once a second.
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
        num_received: Callable[[int], int],
        is_admitted: Callable[[str], bool] = lambda site: True,
        look: Callable[[], None] = lambda: None,
        should_stop: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self._uploads = uploads
        self._shelf = shelf
        self._folder = folder
        self._infos = sorted(infos, key=lambda info: info.name)
        self._num_received = num_received
        self._is_admitted = is_admitted
        self._look = look
        self._should_stop = should_stop
        self._clock = clock
        self._cancelled: set[str] = set()

    def clients(self) -> Sequence[ClientInfo]:
        """Who can be drawn, by name."""
        return self._infos

    def run(self, task: RoundTask, cohort: Sequence[str]) -> Iterator[ClientResult | ClientFailure]:
        """Ask a cohort; ends when everybody has answered, or at the deadline with a quorum."""
        # The journal has what came before; a round that was rolled back did not come by here.
        self._uploads.drop_before(task.run_id, task.round)
        if not cohort:
            return
        card = RunCard.read(self._board.run_card(cohort[0]))
        most_bytes = most_update_bytes(card.adapter_parameters)
        digest = self._post(task, cohort, most_bytes)
        missing = set(cohort)
        try:
            for result in self._answers(task, missing, most_bytes):
                missing.discard(result.client)
                yield result
        finally:
            self._board.retract()
            self._shelf.remove(digest)
            (self._folder / f"state-{task.round}").unlink(missing_ok=True)
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

    def _post(self, task: RoundTask, cohort: Sequence[str], most_bytes: int) -> str:
        digest = digest_of(task.state)
        path = self._folder / f"state-{task.round}"
        self._folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, task.state)
        self._shelf.put(digest, {STATE_FILE: path})
        for old in self._folder.glob("state-*"):
            if old != path:
                old.unlink()
        cards = {name: TaskCard.of(task, name, digest).model_dump_json() for name in cohort}
        self._board.post(
            Posted(task.run_id, task.round, digest, cards, task.deadline_s, most_bytes)
        )
        return digest

    def _answers(
        self, task: RoundTask, missing: set[str], most_bytes: int
    ) -> Iterator[ClientResult | ClientFailure]:
        """Results and failures of those who are missing, as they come; each site once."""
        ends = None if task.deadline_s is None else self._clock() + task.deadline_s
        while True:
            # The store says what is here, events only when to look: one that was lost, or that is
            # about another round, changes nothing.
            for committed in self._uploads.committed(task.run_id, task.round):
                if committed.site in missing:
                    yield _result(task, committed, most_bytes)
            yield from self._lost(task, sorted(missing))
            if not missing or self._is_stopped(task):
                return
            if ends is not None and self._clock() >= ends and self._has_quorum(task):
                return
            self._look()
            event = self._board.next_event(_TICK_S)
            if event is None or (event.run_id, event.round) != (task.run_id, task.round):
                continue
            if event.kind == "failed" and event.site in missing:
                yield ClientFailure(event.site, task.round, event.reason)

    def _lost(self, task: RoundTask, missing: Sequence[str]) -> Iterator[ClientFailure]:
        """Those of whom no answer can come any more."""
        for site in missing:
            if not self._board.is_in(site, task.run_id):
                yield ClientFailure(site, task.round, "withdrew from the run")
            elif not self._is_admitted(site):
                yield ClientFailure(site, task.round, "its certificate was revoked")

    def _has_quorum(self, task: RoundTask) -> bool:
        return task.quorum is not None and self._num_received(task.round) >= task.quorum


def _result(task: RoundTask, committed: Committed, most_bytes: int) -> ClientResult | ClientFailure:
    """What a site sent; card and size were checked when it came, but maybe by an older fedot."""
    num_bytes = committed.path.stat().st_size
    if num_bytes > most_bytes:
        reason = f"its update has {num_bytes} bytes; with this adapter none has over {most_bytes}"
        return ClientFailure(committed.site, task.round, reason)
    try:
        card = ResultCard.read(committed.metadata)
    except WireError as error:
        return ClientFailure(committed.site, task.round, str(error))
    payload = committed.path.read_bytes()
    return card.result(committed.site, task.round, committed.digest, payload)
