"""A run's durable state at the server: SQLite for what happened, files for the bytes.

Each (round, client) counts once: the same digest again is a no-op, another digest is a conflict.
Closing a round is one transaction. Bytes are written, fsynced and renamed before the row that names
them, so a row never points at bytes that a crash took away. No torch here.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedot.errors import ConfigError, ProtocolError
from fedot.messages import digest_of

__all__ = ["Journal", "Update", "make_folder_durably", "sync_folder", "write_durably"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS round (
    round INTEGER PRIMARY KEY, state TEXT NOT NULL, metrics TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS received (
    round INTEGER NOT NULL, client TEXT NOT NULL, digest TEXT NOT NULL, metadata TEXT NOT NULL,
    PRIMARY KEY (round, client)) STRICT;
CREATE TABLE IF NOT EXISTS kept (digest TEXT PRIMARY KEY) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Update:
    """One accepted update of an open or closed round."""

    client: str
    digest: str
    metadata: Mapping[str, Any]


class Journal:
    """The journal of one run.

    Args:
        path: the SQLite file; bytes lie beside it in `payloads/`.
    """

    def __init__(self, path: Path):
        self._payloads = path.parent / "payloads"
        self._payloads.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            with ExitStack() as undo:
                undo.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(SCHEMA)
                undo.pop_all()
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path} is no journal: {error}. Start another run.") from error

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fact(self, key: str) -> Any:
        """A JSON value that was noted, or None."""
        row = self._db.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def note(self, key: str, value: Any) -> None:
        """Keep a JSON value; another value under the same key takes its place."""
        self._db.execute(
            "INSERT INTO fact VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, json.dumps(value)),
        )

    def accept(self, round: int, client: str, payload: bytes, metadata: Mapping[str, Any]) -> None:
        """Count one client's update once.

        Raises:
            ProtocolError: the round is closed, or the client sent another update before.
        """
        if round <= self.last_closed():
            raise ProtocolError(f"round {round} is closed; {client}'s update came too late.")
        digest = digest_of(payload)
        held = {update.client: update.digest for update in self.received(round)}
        if held.get(client, digest) != digest:
            raise ProtocolError(
                f"{client} has already sent another update for round {round}; the first one counts."
            )
        self._store(payload, digest)
        self._db.execute(
            "INSERT INTO received VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (round, client, digest, json.dumps(metadata)),
        )

    def received(self, round: int) -> Sequence[Update]:
        """The updates of a round, in client order whatever order they came in."""
        rows = self._db.execute(
            "SELECT client, digest, metadata FROM received WHERE round = ? ORDER BY client",
            (round,),
        )
        return [Update(client, digest, json.loads(raw)) for client, digest, raw in rows]

    def payload(self, digest: str) -> bytes:
        """Stored bytes, checked against their digest.

        Raises:
            ProtocolError: they are gone or damaged.
        """
        try:
            payload = (self._payloads / digest).read_bytes()
        except OSError as error:
            raise ProtocolError(f"payload {digest[:12]} is missing from the journal.") from error
        if digest_of(payload) != digest:
            raise ProtocolError(f"payload {digest[:12]} is damaged on disk; restore the run.")
        return payload

    def keep(self, payload: bytes) -> str:
        """Store bytes for good; `payload` reads them by the digest that this returns."""
        digest = digest_of(payload)
        # Noted, for an update that goes with its round may have the same bytes.
        self._store(payload, digest)
        self._db.execute("INSERT INTO kept VALUES (?) ON CONFLICT DO NOTHING", (digest,))
        return digest

    def close_round(self, round: int, state: bytes, metrics: Mapping[str, Any]) -> None:
        """End a round: its state and metrics become the run's, in one transaction.

        Raises:
            ProtocolError: it is not the next round.
        """
        last = self.last_closed()
        if round != last + 1:
            raise ProtocolError(f"round {round} cannot be closed; the last closed one is {last}.")
        digest = digest_of(state)
        self._store(state, digest)
        with self._transaction():
            self._db.execute(
                "INSERT INTO round VALUES (?, ?, ?)", (round, digest, json.dumps(metrics))
            )
        self._drop_unneeded(round)

    def last_closed(self) -> int:
        """Number of the last closed round; -1 before the start (round 0)."""
        row = self._db.execute("SELECT MAX(round) FROM round").fetchone()
        return -1 if row[0] is None else int(row[0])

    def state(self, round: int) -> bytes:
        """The state payload after a closed round."""
        row = self._db.execute("SELECT state FROM round WHERE round = ?", (round,)).fetchone()
        if row is None:
            raise ProtocolError(f"round {round} is not closed; it has no state.")
        return self.payload(row[0])

    def metrics(self) -> Sequence[dict[str, Any]]:
        """The metrics of all closed rounds, oldest first."""
        rows = self._db.execute("SELECT metrics FROM round ORDER BY round")
        return [json.loads(row[0]) for row in rows]

    def _store(self, payload: bytes, digest: str) -> None:
        path = self._payloads / digest
        if not path.exists():
            write_durably(path, payload)

    def _drop_unneeded(self, closed: int) -> None:
        """Updates of a closed round have done their work; states and what was kept stay."""
        rows = self._db.execute(
            "SELECT digest FROM received WHERE round = ? "
            "EXCEPT SELECT digest FROM received WHERE round > ? EXCEPT SELECT state FROM round "
            "EXCEPT SELECT digest FROM kept",
            (closed, closed),
        )
        for (digest,) in rows.fetchall():
            (self._payloads / digest).unlink(missing_ok=True)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def write_durably(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file that is there whole after a crash, or not at all; keys take mode 0o600."""
    draft = path.with_name(f".{path.name}.part")
    with open(draft, "wb", opener=partial(os.open, mode=mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


def make_folder_durably(path: Path) -> None:
    """Make a folder that is there after a crash; the one above it must be so already."""
    path.mkdir(exist_ok=True)
    # Also when it was there: who made it may have been killed before this line.
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
