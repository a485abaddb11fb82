"""Is it the disk? Such an error says nothing about a job: it goes on once there is room again."""

from __future__ import annotations

import errno
import sqlite3

from fedot.transport.errors import Busy

__all__ = ["is_of_the_disk"]

_OF_FILES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
_OF_SQLITE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}


def is_of_the_disk(error: Exception) -> bool:
    """Whether the disk is full or fails, rather than what was asked of it being wrong."""
    if isinstance(error, sqlite3.Error):
        # The low byte is the kind, whatever stands above it says more.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_SQLITE
    # The upload store says so when its disk fails.
    return isinstance(error, Busy) or (isinstance(error, OSError) and error.errno in _OF_FILES)
