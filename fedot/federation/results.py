"""What an owner fetches of a finished job: one archive with adapters and all reports."""

from __future__ import annotations

import json
import os
import sqlite3
import zipfile
from contextlib import closing
from hashlib import file_digest
from pathlib import Path
from typing import Any

from fedot.journal import sync_folder

__all__ = ["pack_results", "results_digest", "run_id_of", "sites_of"]

_FOLDERS = ("adapter", "adapter-best")
_FILES = ("config.yaml", "summary.json", "metrics.jsonl", "report.html")


def pack_results(run: Path, to: Path) -> str:
    """Pack a finished run's results; one that is packed stays as it is.

    Args:
        run: the run's folder.
        to: where the archive goes.

    Returns:
        SHA-256 of the archive.
    """
    if not to.exists():
        draft = to.with_name(f".{to.name}.part")
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in _results(run):
                archive.write(path, path.relative_to(run).as_posix())
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(to)
        sync_folder(to.parent)
    return results_digest(to)


def run_id_of(run: Path) -> str | None:
    """A run's id in ledgers and journals; None before it has one."""
    found = _fact(run, "run_id")
    return None if found is None else str(found)


def sites_of(run: Path) -> list[str]:
    """Who is in a run that has begun, by name; nobody before that is settled."""
    return list(_fact(run, "sites") or ())


def results_digest(path: Path) -> str:
    """SHA-256 of an archive."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _results(run: Path) -> list[Path]:
    files = [run / name for name in _FILES]
    files += sorted(path for folder in _FOLDERS for path in (run / folder).rglob("*"))
    return [path for path in files if path.is_file()]


def _fact(run: Path, key: str) -> Any:
    """What a run's journal has noted; read only, for the run may be at work, or just making it."""
    path = run / "journal.sqlite"
    if not path.exists():
        return None
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        try:
            row = db.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError:
            return None
    return None if row is None else json.loads(row[0])
