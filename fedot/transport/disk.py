"""What the upload store does to a disk, in one small object, so that tests can make it fail."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from fedot.journal import sync_folder

__all__ = ["Disk"]


class Disk:
    """The disk as it is."""

    def create(self, path: Path) -> None:
        """Make an empty file if it is not there; its name lasts after `sync_folder`."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def open(self, path: Path) -> int:
        """Open a file that is there, to read and write."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, file: int) -> None:
        """Let go of it; nothing is made durable by this."""
        os.close(file)

    def write(self, file: int, data: memoryview, offset: int) -> None:
        """Write all of it."""
        while data:
            written = os.pwrite(file, data, offset)
            data, offset = data[written:], offset + written

    def read(self, file: int, num_bytes: int, offset: int) -> bytes:
        """Read up to so much."""
        return os.pread(file, num_bytes, offset)

    def fdatasync(self, file: int) -> None:
        """Everything written before this lasts."""
        os.fdatasync(file)
        # Written once, read much later: other things have more use for the memory.
        with contextlib.suppress(OSError):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, before: Path, after: Path) -> None:
        """Another name; it lasts after `sync_folder`."""
        os.replace(before, after)

    def sync_folder(self, folder: Path) -> None:
        """Names in it last."""
        sync_folder(folder)

    def unlink(self, path: Path) -> None:
        """Remove a file if it is there."""
        path.unlink(missing_ok=True)

    def commit(self, db: sqlite3.Connection) -> None:
        """End a transaction; it lasts."""
        db.execute("COMMIT")
