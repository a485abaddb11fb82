"""A server's queue of jobs: SQLite, one runs at a time, first come first served. No torch here.

    queued -> running -> done | failed | aborted
    failed, aborted -> queued (again: its run goes on where it stopped)

Design note: what the queue says is durable before it is said, so a job that was running when the
server was killed is running after its restart, and is resumed. An abort or a roll back that was
asked for outlives the server too.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from fedot.config import config_from_yaml, to_yaml
from fedot.errors import ConfigError, ProtocolError

__all__ = ["Job", "JobQueue", "JobState"]

JobState = Literal["queued", "running", "done", "failed", "aborted"]

_OPEN = ("queued", "running")
_LONGEST_NAME = 200
_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
    number INTEGER PRIMARY KEY, job_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    config_yaml TEXT NOT NULL, submitted_by TEXT NOT NULL, submitted_at TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    abort_reason TEXT, roll_back INTEGER) STRICT;
"""
_COLUMNS = "job_id, name, config_yaml, submitted_by, submitted_at, state, reason"


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the queue knows it.

    Attributes:
        name: for people.
        config_yaml: resolved: every key with the value that is used.
        submitted_at: UTC, ISO 8601.
        reason: why it failed or was aborted; empty otherwise.
    """

    job_id: str
    name: str
    config_yaml: str
    submitted_by: str
    submitted_at: str
    state: JobState
    reason: str


class JobQueue:
    """The queue of one server; safe between threads.

    Args:
        path: the SQLite file; jobs' folders lie beside it in `jobs/`.
    """

    def __init__(self, path: Path):
        self._folder = path.parent / "jobs"
        self._lock = threading.Lock()
        try:
            # The lock is what makes one connection safe between threads.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            with ExitStack() as undo:
                undo.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_SCHEMA)
                undo.pop_all()
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path} is no queue of jobs: {error}. Move it away.") from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> JobQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run_folder(self, job_id: str) -> Path:
        """Where a job's run is; a folder that is there is a run to resume."""
        return self._folder / self.get(job_id).job_id / "run"

    def submit(self, name: str, config_yaml: str, by: str) -> Job:
        """Queue a job; its config is checked first.

        Args:
            name: for people; printable.
            config_yaml: YAML text; its paths are the server's.
            by: who submits it.

        Raises:
            ConfigError: the name or the config cannot be used.
        """
        if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
            raise ConfigError(
                f"a job's name must have 1 to {_LONGEST_NAME} printable characters; rename it."
            )
        resolved = to_yaml(config_from_yaml(config_yaml))
        job_id, now = f"job-{uuid4().hex[:12]}", datetime.now(UTC).isoformat(timespec="seconds")
        with self._changing() as db:
            db.execute(
                "INSERT INTO job (job_id, name, config_yaml, submitted_by, submitted_at, state) "
                "VALUES (?, ?, ?, ?, ?, 'queued')",
                (job_id, name, resolved, by, now),
            )
            return _get(db, job_id)

    def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            ProtocolError: there is none of that id.
        """
        with self._lock:
            return _get(self._db, job_id)

    def list(self) -> tuple[Job, ...]:
        """All jobs, oldest first."""
        with self._lock:
            return tuple(Job(*row) for row in self._db.execute(_select("1 ORDER BY number")))

    def next_queued(self) -> Job | None:
        """The job to work on now, running from here on; None where there is none.

        A job that is running already is given again: a server calls this when it starts and when
        a job has ended, so it was cut off. Its abort may have been asked for: see `stop_reason`.
        """
        with self._changing() as db:
            row = db.execute(
                _select("state IN ('running', 'queued') ORDER BY state = 'queued', number LIMIT 1")
            ).fetchone()
            if row is None:
                return None
            db.execute("UPDATE job SET state = 'running' WHERE job_id = ?", (row[0],))
            return _get(db, row[0])

    def finish(
        self, job_id: str, state: Literal["done", "failed", "aborted"], reason: str = ""
    ) -> Job:
        """End the running job.

        Raises:
            ProtocolError: it is not running.
        """
        with self._changing() as db:
            _must_be(_get(db, job_id), ("running",))
            db.execute(
                "UPDATE job SET state = ?, reason = ?, abort_reason = NULL WHERE job_id = ?",
                (state, reason, job_id),
            )
            return _get(db, job_id)

    def abort(self, job_id: str, reason: str) -> Job:
        """End a queued job at once; ask a running one to stop, which `stop_reason` then tells.

        Raises:
            ProtocolError: it has ended.
        """
        with self._changing() as db:
            job = _get(db, job_id)
            _must_be(job, _OPEN)
            if job.state == "queued":
                db.execute(
                    "UPDATE job SET state = 'aborted', reason = ? WHERE job_id = ?",
                    (reason, job_id),
                )
            else:
                db.execute("UPDATE job SET abort_reason = ? WHERE job_id = ?", (reason, job_id))
            return _get(db, job_id)

    def stop_reason(self, job_id: str) -> str | None:
        """Why a running job is to stop, or None: a run's `should_stop`."""
        with self._lock:
            reason: str | None = _value(self._db, job_id, "abort_reason")
            return reason

    def queue_again(self, job_id: str) -> Job:
        """Queue a job that failed or was aborted; its run goes on where it stopped.

        Raises:
            ProtocolError: it is in the queue, or done.
        """
        with self._changing() as db:
            _must_be(_get(db, job_id), ("failed", "aborted"))
            # An abort belongs to the run's last stretch, whoever ended that.
            db.execute(
                "UPDATE job SET state = 'queued', reason = '', abort_reason = NULL "
                "WHERE job_id = ?",
                (job_id,),
            )
            return _get(db, job_id)

    def request_roll_back(self, job_id: str, round: int) -> Job:
        """Ask a job's run to go back to a closed round; a later request takes its place.

        Raises:
            ProtocolError: the job is done, or the round is below 0.
        """
        if round < 0:
            raise ProtocolError(f"round {round} does not exist; name a closed one, from 0.")
        with self._changing() as db:
            _must_be(_get(db, job_id), (*_OPEN, "failed", "aborted"))
            db.execute("UPDATE job SET roll_back = ? WHERE job_id = ?", (round, job_id))
            return _get(db, job_id)

    def wanted_roll_back(self, job_id: str) -> int | None:
        """The round that a job is to go back to, or None: a run's `roll_back_to`."""
        with self._lock:
            round: int | None = _value(self._db, job_id, "roll_back")
            return round

    def take_roll_back(self, job_id: str, round: int) -> None:
        """Forget a request that was carried out: a run's `roll_back_done`.

        Until then it stays, so that a kill in between loses nothing. One for another round that
        came since stays too.
        """
        with self._changing() as db:
            db.execute(
                "UPDATE job SET roll_back = NULL WHERE job_id = ? AND roll_back = ?",
                (job_id, round),
            )

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _select(where: str) -> str:
    return f"SELECT {_COLUMNS} FROM job WHERE {where}"


def _get(db: sqlite3.Connection, job_id: str) -> Job:
    row = db.execute(_select("job_id = ?"), (job_id,)).fetchone()
    if row is None:
        raise ProtocolError("there is no job of that id; fedot job list shows all.")
    return Job(*row)


def _value(db: sqlite3.Connection, job_id: str, column: str) -> Any:
    row = db.execute(f"SELECT {column} FROM job WHERE job_id = ?", (job_id,)).fetchone()
    return None if row is None else row[0]


def _must_be(job: Job, states: tuple[str, ...]) -> None:
    if job.state not in states:
        raise ProtocolError(
            f"job {job.job_id} is {job.state}; this needs one that is {' or '.join(states)}."
        )
