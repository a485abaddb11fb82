"""A disk that forgets what was not synced when the power fails, and fails in other ways too.

Files are real, so that the store reads what it wrote. Beside them this keeps what would be there
after a crash: of every file the content at its last fdatasync and the writes since then, of the
folder the names at its last sync and the changes since then. `crash` puts a state on the real disk
that is possible then: some of the writes since, one of them torn, and some of the changed names.
"""

from __future__ import annotations

import errno
import random
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from fedot.transport.disk import Disk

__all__ = ["Crash", "SimulatedDisk"]


class Crash(BaseException):
    """The power fails here. No program can catch this."""


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    since: list[tuple[int, bytes]] = field(default_factory=list)

    def apply(self, offset: int, data: bytes) -> None:
        # Bytes that nobody wrote read as zeros.
        self.durable.extend(bytes(max(0, offset + len(data) - len(self.durable))))
        self.durable[offset : offset + len(data)] = data


class SimulatedDisk(Disk):
    """A disk for one folder.

    Args:
        folder: where the store keeps its files.
        rng: decides what fails, and what survives a crash.
        fail_prob: of a write (no space left, some of it written), an fdatasync, a commit.
        lies: operations that do nothing and say that they did: what a program without them does.

    Attributes:
        crash_at: number of the operation at which the power fails, or None.
        num_operations: so far; each counts twice, before and after it is done.
    """

    def __init__(
        self,
        folder: Path,
        rng: random.Random,
        fail_prob: float = 0.0,
        lies: frozenset[str] = frozenset(),
    ):
        self._folder, self._rng, self._lies = folder, rng, lies
        self.fail_prob = fail_prob
        self.crash_at: int | None = None
        self.num_operations = 0
        self._opened: dict[int, _File] = {}
        self._now: dict[str, _File] = {}
        self._lasting: dict[str, _File] = {}
        self._changes: list[tuple[str, str, _File | None]] = []

    def create(self, path: Path) -> None:
        self._step()
        super().create(path)
        if path.name not in self._now:
            self._change("add", path.name, _File())
        self._step()

    def open(self, path: Path) -> int:
        opened = super().open(path)
        self._opened[opened] = self._now[path.name]
        return opened

    def close(self, file: int) -> None:
        self._opened.pop(file, None)
        super().close(file)

    def write(self, file: int, data: memoryview, offset: int) -> None:
        fails = self._rng.random() < self.fail_prob
        if fails:
            data = data[: self._rng.randrange(len(data))]
        self._opened[file].since.append((offset, bytes(data)))
        super().write(file, data, offset)
        if fails:
            raise OSError(errno.ENOSPC, "no space left")

    def fdatasync(self, file: int) -> None:
        self._step()
        if self._rng.random() < self.fail_prob:
            # As Linux does: what it could not write counts as written from now on.
            self._opened[file].since.clear()
            raise OSError(errno.EIO, "the disk failed")
        if "fdatasync" not in self._lies:
            known = self._opened[file]
            for offset, data in known.since:
                known.apply(offset, data)
            known.since.clear()
        self._step()

    def rename(self, before: Path, after: Path) -> None:
        self._step()
        super().rename(before, after)
        moved = self._now[before.name]
        # One change: after a crash a file has one of both names.
        self._changes.append((f"move:{after.name}", before.name, moved))
        del self._now[before.name]
        self._now[after.name] = moved
        self._step()

    def sync_folder(self, folder: Path) -> None:
        self._step()
        if "sync_folder" not in self._lies:
            for change in self._changes:
                _apply(self._lasting, change)
            self._changes.clear()
        self._step()

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
        if path.name in self._now:
            self._change("drop", path.name, None)
        self._step()

    def commit(self, db: sqlite3.Connection) -> None:
        self._step()
        if self._rng.random() < self.fail_prob:
            raise sqlite3.OperationalError("database or disk is full")
        super().commit(db)
        self._step()

    def crash(self) -> None:
        """Put on the real disk what might be there after a power failure now."""
        for change in self._changes[: self._rng.randint(0, len(self._changes))]:
            _apply(self._lasting, change)
        self._changes.clear()
        for file in {id(each): each for each in self._lasting.values()}.values():
            self._forget(file)
        for path in [*self._folder.glob("*.part"), *self._folder.glob("*.update")]:
            path.unlink()
        for name, file in self._lasting.items():
            (self._folder / name).write_bytes(file.durable)
        self._now, self._opened = dict(self._lasting), {}
        self.crash_at = None

    def _forget(self, file: _File) -> None:
        for offset, data in file.since:
            fate = self._rng.random()
            if fate < 0.3:
                file.apply(offset, data)
            elif fate < 0.5 and data:
                file.apply(offset, data[: self._rng.randrange(len(data))])
        file.since.clear()

    def _change(self, kind: str, name: str, file: _File | None) -> None:
        self._changes.append((kind, name, file))
        if file is None:
            self._now.pop(name)
        else:
            self._now[name] = file

    def _step(self) -> None:
        self.num_operations += 1
        if self.num_operations - 1 == self.crash_at:
            raise Crash


def _apply(names: dict[str, _File], change: tuple[str, str, _File | None]) -> None:
    kind, name, file = change
    if kind == "drop":
        names.pop(name, None)
    elif kind == "add":
        assert file is not None
        names[name] = file
    else:
        # A file whose name never lasted cannot be moved either; the new name is what there is.
        assert file is not None
        names.pop(name, None)
        names[kind.removeprefix("move:")] = file
