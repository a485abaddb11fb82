"""Bugs that the kill tests must see, put into the processes from outside."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedot.client.outbox import Outbox
from fedot.engines.remote import RemoteEngine
from fedot.privacy.ledger import Ledger
from fedot.transport.channel import Channel
from fedot.transport.upload import UploadState, UploadStore


@dataclass(frozen=True)
class Plant:
    """A bug.

    Attributes:
        install: given whether this is the server, and the federation's folder.
        phases: where a kill brings it to light; nothing: anywhere.
        unit: of privacy.
    """

    install: Callable[[bool, Path], None]
    phases: tuple[str, ...]
    unit: str = "none"


def _acknowledge_early(is_server: bool, home: Path) -> None:
    """An upload is acknowledged before it is recorded; a second later it is."""
    if not is_server:
        return
    pending: dict[tuple[str, str, int], threading.Timer] = {}
    commit, committed, is_committed = (
        UploadStore.commit,
        UploadStore.committed,
        UploadStore.is_committed,
    )

    def at_once(self: UploadStore, upload_id: str, binding: Any) -> UploadState:
        later = threading.Timer(1.0, commit, (self, upload_id, binding))
        pending[binding.site, binding.run_id, binding.round] = later
        later.start()
        return UploadState(upload_id, self.query(upload_id, binding).committed_offset, True)

    def recorded(self: UploadStore, run_id: str, round: int) -> Any:
        for timer in list(pending.values()):
            timer.join()
        return committed(self, run_id, round)

    UploadStore.commit = at_once  # type: ignore[method-assign]
    UploadStore.committed = recorded  # type: ignore[method-assign]
    UploadStore.is_committed = (  # type: ignore[method-assign]
        lambda self, *key: key in pending or is_committed(self, *key)
    )


def _forget_outbox(is_server: bool, home: Path) -> None:
    """A site trains again although an update is stored."""
    Outbox.stored = lambda self, task: None  # type: ignore[method-assign]


def _charge_late(is_server: bool, home: Path) -> None:
    """An update is charged once it has been sent."""
    if is_server:
        return
    late: list[Any] = []
    charge, upload = Ledger.charge, Channel.upload
    Ledger.charge = lambda *args: late.append(args)  # type: ignore[method-assign,assign]

    def then_charge(*args: Any, **named: Any) -> Any:
        result = upload(*args, **named)
        while late:
            charge(*late.pop())
        return result

    Channel.upload = then_charge  # type: ignore[method-assign]


def _forget_received(is_server: bool, home: Path) -> None:
    """A server that starts again has lost what it had accepted, in journal and store."""
    if not is_server:
        return
    (path,) = (home / "server" / "jobs").glob("*/run/journal.sqlite")
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM received WHERE round > (SELECT MAX(round) FROM round)")
    db.close()
    drop = UploadStore.drop
    post = RemoteEngine._post

    def forget(self: RemoteEngine, task: Any, *asked: Any) -> Any:
        drop(self._uploads, task.run_id, task.round)
        return post(self, task, *asked)

    RemoteEngine._post = forget  # type: ignore[method-assign]


PLANTS = {
    "acknowledge-early": Plant(_acknowledge_early, ("commit", "")),
    "forget-outbox": Plant(_forget_outbox, ("upload", "commit")),
    "charge-late": Plant(_charge_late, ("upload",), "example"),
    "forget-received": Plant(_forget_received, ("commit", "upload")),
}
