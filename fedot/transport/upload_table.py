"""The rows of the upload store: SQLite, so that what was recorded is there after a crash."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedot.errors import ConfigError, ProtocolError
from fedot.transport.binding import Binding
from fedot.transport.disk import Disk
from fedot.transport.errors import UnknownUpload

__all__ = ["Row", "UploadTable"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS upload (
    upload_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL,
    digest TEXT NOT NULL, size INTEGER NOT NULL, metadata TEXT NOT NULL,
    durable INTEGER NOT NULL, is_whole INTEGER NOT NULL, UNIQUE (run_id, round, site)) STRICT;
CREATE TABLE IF NOT EXISTS taken (
    run_id TEXT NOT NULL, site TEXT NOT NULL, num_bytes INTEGER NOT NULL,
    PRIMARY KEY (run_id, site)) STRICT;
"""
_COLUMNS = "upload_id, run_id, round, site, digest, size, metadata, durable, is_whole"


@dataclass(frozen=True, slots=True)
class Row:
    """One upload, as recorded."""

    upload_id: str
    binding: Binding
    size: int
    metadata: str
    durable: int
    is_whole: bool


class UploadTable:
    """All uploads. Thread-safe.

    Args:
        path: the SQLite file.
        disk: ends transactions.

    Raises:
        ConfigError: the file is something else.
    """

    def __init__(self, path: Path, disk: Disk):
        self._disk = disk
        self._guard = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigError(f"{path} is no table of uploads: {error}. Remove it.") from error

    def close(self) -> None:
        """Let go of the file."""
        with self._guard:
            self._db.close()

    def create(
        self, binding: Binding, size: int, metadata: str, most_per_site: int
    ) -> tuple[Row, bool]:
        """The upload of one site for one round, and whether it is new.

        Raises:
            ProtocolError: there is another one, or the site has sent too much in this run.
        """
        key = (binding.run_id, binding.round, binding.site)
        where = "run_id = ? AND round = ? AND site = ?"
        with self._transaction() as db:
            old = _one(db, where, key)
            if old is not None:
                _check_same(old, binding, size)
                return old, False
            self._take(db, binding, size, most_per_site)
            row = Row(secrets.token_hex(16), binding, size, metadata, 0, False)
            db.execute(
                "INSERT INTO upload VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)",
                (row.upload_id, *key, binding.digest, size, metadata),
            )
            return row, True

    def get(self, upload_id: str) -> Row:
        """One upload.

        Raises:
            UnknownUpload: there is none of that id.
        """
        with self._guard:
            row = _one(self._db, "upload_id = ?", (upload_id,))
        if row is None:
            raise UnknownUpload("there is no such upload; its round may be over. Create it again.")
        return row

    def record(self, upload_id: str, durable: int, is_whole: bool = False) -> None:
        """Bytes up to `durable` last, and the upload is whole if it says so.

        Raises:
            UnknownUpload: it was dropped meanwhile.
        """
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE upload SET durable = MAX(durable, ?), is_whole = MAX(is_whole, ?) "
                "WHERE upload_id = ?",
                (durable, int(is_whole), upload_id),
            )
            if not changed.rowcount:
                raise UnknownUpload("the upload was dropped; its round is over.")

    def whole(self, run_id: str, round: int) -> Sequence[Row]:
        """The committed uploads of a round, in the order of sites."""
        return self._select("run_id = ? AND round = ? AND is_whole ORDER BY site", (run_id, round))

    def of_round(self, run_id: str, round: int) -> Sequence[Row]:
        """All uploads of a round."""
        return self._select("run_id = ? AND round = ?", (run_id, round))

    def before(self, run_id: str, round: int) -> Sequence[Row]:
        """All uploads of a run's rounds before one."""
        return self._select("run_id = ? AND round < ?", (run_id, round))

    def all(self) -> Sequence[Row]:
        """All uploads."""
        return self._select("1", ())

    def delete(self, upload_ids: Sequence[str]) -> None:
        """Forget uploads, all of them or none."""
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM upload WHERE upload_id = ?", [(each,) for each in upload_ids]
            )

    def _select(self, where: str, values: tuple[object, ...]) -> Sequence[Row]:
        with self._guard:
            found = self._db.execute(f"SELECT {_COLUMNS} FROM upload WHERE {where}", values)
            return [_row(each) for each in found]

    def _take(self, db: sqlite3.Connection, binding: Binding, size: int, most: int) -> None:
        key = (binding.run_id, binding.site)
        found = db.execute(
            "SELECT num_bytes FROM taken WHERE run_id = ? AND site = ?", key
        ).fetchone()
        taken = (found[0] if found else 0) + size
        if taken > most:
            raise ProtocolError(
                f"{binding.site} would have sent {taken} bytes in this run; its limit is {most}. "
                "Ask the model owner."
            )
        db.execute("INSERT OR REPLACE INTO taken VALUES (?, ?, ?)", (*key, taken))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guard:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._disk.commit(self._db)
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _one(db: sqlite3.Connection, where: str, values: tuple[object, ...]) -> Row | None:
    found = db.execute(f"SELECT {_COLUMNS} FROM upload WHERE {where}", values).fetchone()
    return None if found is None else _row(found)


def _row(found: tuple[str, str, int, str, str, int, str, int, int]) -> Row:
    upload_id, run_id, round, site, digest, size, metadata, durable, is_whole = found
    binding = Binding(run_id, round, site, digest)
    return Row(upload_id, binding, size, metadata, durable, bool(is_whole))


def _check_same(old: Row, binding: Binding, size: int) -> None:
    if (old.binding.digest, old.size) != (binding.digest, size):
        raise ProtocolError(
            f"{binding.site} has already begun another update for round {binding.round}; the first "
            "one counts."
        )
