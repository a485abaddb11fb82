"""Who did what when at the server: lines of JSON that are only ever appended. Never content.

A line has a number, the time (UTC), the event, the peer's name and certificate, and facts: names,
digests, sizes, reasons. Design note: every line ends with a hash over itself and the line before,
so a line that was changed, removed or put in is seen by `check_log`. Lines cut off at the end are
not, and who can write the file can make all of it anew: for that, note the last hash elsewhere.

What releases or refuses is on disk before `record` returns (all but `UNSYNCED`), so it is done
after its line is safe. A line that a crash tore was never acted upon: opening the log drops it and
says so in a line of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from fedot.errors import ConfigError
from fedot.journal import sync_folder
from fedot.transport.members import Peer

__all__ = ["UNSYNCED", "AuditLog", "Checked", "Event", "Fact", "check_log"]

Event = Literal[
    "started",
    "mended",
    "stopped",
    "hello",
    "reported",
    "broken_off",
    "left",
    "released",
    "received",
    "refused",
    "submitted",
    "aborted",
    "resumed",
    "rolled_back",
    "fetched",
    "round_closed",
    "run_ended",
]
"""What happened. `released`: bytes may go to the peer; `received`: its upload counts."""

UNSYNCED: frozenset[Event] = frozenset({"hello", "reported", "broken_off"})
"""Events that a crash of the machine may take along: they release and refuse nothing."""

Fact = str | int | float | bool | None

_START = "0" * 64
_MOST_CHARACTERS = 256
# The longest line, with room: facts are few and short.
_TAIL_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Checked:
    """A log that is whole.

    Attributes:
        lines: how many it has.
        last: the hash of the last one; the same log never has another one at this length.
    """

    lines: int
    last: str


class AuditLog:
    """One server's log, open for appending. Thread-safe; one process at a time.

    Args:
        path: the file; made if it is not there.

    Raises:
        ConfigError: another server writes it, or its last line is damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        self._guard = threading.Lock()
        self._lines, self._last = 0, _START
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            self._take()
            torn = self._mend()
        except BaseException:
            os.close(self._file)
            raise
        sync_folder(path.parent)
        if torn:
            self.record("mended", torn_bytes=torn)

    def record(self, event: Event, peer: Peer | None = None, **facts: Fact) -> None:
        """Append a line; on disk when this returns, unless the event is one of `UNSYNCED`.

        Args:
            event: what happened.
            peer: who did it, or None for the server itself.
            facts: names, digests, sizes, reasons. Texts are cut at 256 characters.

        Raises:
            OSError: it could not be written; what it allows must not be done.
        """
        body = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "peer": peer.name[:_MOST_CHARACTERS] if peer else None,
            "fingerprint": peer.fingerprint[:_MOST_CHARACTERS] if peer else None,
            "facts": {name: _short(value) for name, value in facts.items()},
        }
        with self._guard:
            number = self._lines + 1
            line, chain = _line({"number": number, **body}, self._last)
            self._append(line)
            self._lines, self._last = number, chain
        if event not in UNSYNCED:
            os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{self._path} is written by another server; stop that one, or use another folder."
            ) from error

    def _mend(self) -> int:
        """Find the last line; drop what a crash left after it. The number of bytes dropped."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        whole, _, torn = tail.rpartition(b"\n")
        if torn:
            os.ftruncate(self._file, size - len(torn))
        if whole:
            last = _read(whole.rpartition(b"\n")[2])
            if last is None:
                raise ConfigError(
                    f"the last line of {self._path} is damaged; move the file away and keep it."
                )
            self._lines, self._last = last["number"], last["hash"]
        return len(torn)

    def _append(self, line: bytes) -> None:
        """All of a line or nothing: the next one must not stand in half of this."""
        before = os.fstat(self._file).st_size
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, before)
            raise


def check_log(path: Path) -> Checked:
    """Check every line against the one before it; a server may be writing meanwhile.

    Raises:
        ConfigError: the file cannot be read, or a line is not what was written.
    """
    last, number = _START, 0
    try:
        with path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                number += 1
                chain = _follows(raw, number, last)
                if chain is None:
                    raise ConfigError(
                        f"line {number} of {path} is not what was written, or one before it is "
                        "missing. Compare with a backup."
                    )
                last = chain
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error
    return Checked(number, last)


def _line(body: dict[str, Any], before: str) -> tuple[bytes, str]:
    """A line with its hash, and that hash."""
    # ASCII only, and JSON escapes control characters: no text can end a line or move a cursor.
    text = json.dumps(body, allow_nan=False)
    chain = sha256(f"{before}{text}".encode()).hexdigest()
    return f'{text[:-1]}, "hash": "{chain}"}}\n'.encode(), chain


def _follows(raw: bytes, number: int, before: str) -> str | None:
    """The hash of a line, or None if it is not what `record` wrote after the one before."""
    found = _read(raw)
    if found is None or found["number"] != number:
        return None
    body = {name: value for name, value in found.items() if name != "hash"}
    line, chain = _line(body, before)
    return chain if line == raw else None


def _read(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("number"), int):
        return None
    return found if isinstance(found.get("hash"), str) else None


def _short(value: Fact) -> Fact:
    return value[:_MOST_CHARACTERS] if isinstance(value, str) else value
