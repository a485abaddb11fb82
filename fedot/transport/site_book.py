"""What the server remembers of its sites over restarts: data sets, withdrawals, ends heard of."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from fedot.errors import ConfigError, ProtocolError

__all__ = ["SiteBook"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS dataset (
    site TEXT PRIMARY KEY, dataset_id TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE IF NOT EXISTS withdrawn (
    run_id TEXT NOT NULL, site TEXT NOT NULL, PRIMARY KEY (run_id, site)) STRICT;
CREATE TABLE IF NOT EXISTS heard (
    run_id TEXT NOT NULL, site TEXT NOT NULL, PRIMARY KEY (run_id, site)) STRICT;
"""


class SiteBook:
    """One server's book; every method may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{path} cannot be used: {error}. Restore it, or name another --home."
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    def declare(self, site: str, dataset_id: str, is_admitted: Callable[[str], bool]) -> None:
        """Note which data set a site trains on; a data set has one budget, so it has one site.

        Args:
            site: its name.
            dataset_id: of its policy.
            is_admitted: whether a name may still call; one that may not has no data set any more,
                since the same site may have come back under another.

        Raises:
            ProtocolError: another site has declared it.
        """
        with self._lock:
            row = self._db.execute(
                "SELECT site FROM dataset WHERE dataset_id = ? AND site <> ?", (dataset_id, site)
            ).fetchone()
            if row is not None and is_admitted(row[0]):
                raise ProtocolError(
                    f"data set {dataset_id} is another site's; a data set has one budget and may "
                    "be at one site only. Give yours an id of its own in its policy. Is it yours "
                    "under an older name? The model owner must revoke that one first."
                )
            self._db.execute(
                "DELETE FROM dataset WHERE dataset_id = ? AND site <> ?", (dataset_id, site)
            )
            self._db.execute(
                "INSERT INTO dataset VALUES (?, ?) "
                "ON CONFLICT (site) DO UPDATE SET dataset_id = excluded.dataset_id",
                (site, dataset_id),
            )

    def dataset_of(self, site: str) -> str | None:
        """What a site declared last."""
        with self._lock:
            row = self._db.execute(
                "SELECT dataset_id FROM dataset WHERE site = ?", (site,)
            ).fetchone()
        return None if row is None else str(row[0])

    def withdraw(self, run_id: str, site: str) -> None:
        """Note that a site has left a run for good."""
        with self._lock:
            self._db.execute("INSERT OR IGNORE INTO withdrawn VALUES (?, ?)", (run_id, site))

    def withdrawn(self, run_id: str) -> Sequence[str]:
        """Who has left a run, by name."""
        with self._lock:
            rows = self._db.execute(
                "SELECT site FROM withdrawn WHERE run_id = ? ORDER BY site", (run_id,)
            ).fetchall()
        return [site for (site,) in rows]

    def hear(self, run_id: str, site: str) -> None:
        """Note that a site knows of a run's end."""
        with self._lock:
            self._db.execute("INSERT OR IGNORE INTO heard VALUES (?, ?)", (run_id, site))

    def heard(self, run_id: str) -> Sequence[str]:
        """Who knows of a run's end, by name."""
        with self._lock:
            rows = self._db.execute(
                "SELECT site FROM heard WHERE run_id = ? ORDER BY site", (run_id,)
            ).fetchall()
        return [site for (site,) in rows]

    def reopen(self, run_id: str) -> None:
        """A run goes on that had ended: who heard of that has to hear of its next end."""
        with self._lock:
            self._db.execute("DELETE FROM heard WHERE run_id = ?", (run_id,))
