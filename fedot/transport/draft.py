"""A file that a site is downloading: `NAME.part` until it is whole and checked.

Design note: what comes in is written and hashed by a second thread and flushed by a third, so that
the connection is never idle meanwhile. Between them stand a few chunks at most.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from fedot.errors import ConfigError, WireError
from fedot.journal import sync_folder

__all__ = ["Draft"]

_BLOCK_BYTES = 2**20
_SYNC_BYTES = 32 * 2**20
_MOST_WAITING = 4


class Draft:
    """A file on its way to a site; what came before a break is used again.

    Args:
        to: where it will be; its folder is there.
        size: of the whole file.
        digest: SHA-256 of the whole file.

    A context manager that closes it, and keeps what is there.
    """

    def __init__(self, to: Path, size: int, digest: str):
        self._to, self._part = to, to.with_name(f"{to.name}.part")
        self._size, self._digest = size, digest
        self._synced = 0
        self._writer = ThreadPoolExecutor(1, "fedot-write")
        self._waiting: deque[Future[None]] = deque()
        self._syncer = ThreadPoolExecutor(1, "fedot-sync")
        self._syncing: Future[None] | None = None
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.offset, self._hash = 0, sha256()
        if os.fstat(self._file).st_size > size:
            os.ftruncate(self._file, 0)
        self._hash_up()
        self._was_resumed = self.offset > 0

    def write(self, chunk: bytes) -> None:
        """Add the next bytes; what is wrong with them may be said by a later call.

        Raises:
            WireError: the file was announced smaller.
            ConfigError: the disk does not take them.
        """
        if self.offset + len(chunk) > self._size:
            raise WireError(
                f"a file that was announced with {self._size} bytes has more; ask the model owner."
            )
        self._waiting.append(self._writer.submit(self._store, chunk, self.offset))
        self.offset += len(chunk)
        self._settle(_MOST_WAITING)

    def finish(self) -> bool:
        """Check the whole file and give it its name; False: it must be downloaded from 0 again.

        Raises:
            WireError: it is not what was announced.
            ConfigError: the disk does not take it.
        """
        self._settle(0)
        if self._hash.hexdigest() != self._digest:
            os.ftruncate(self._file, 0)
            self.offset, self._hash, self._synced = 0, sha256(), 0
            if self._was_resumed:
                # What lay here from another time, or a crash of this machine, may be to blame.
                self._was_resumed = False
                return False
            raise WireError(
                f"{self._to.name} does not have the digest that was announced; nothing of it was "
                "kept. Ask the model owner."
            )
        with self._disk_errors():
            self._wait()
            os.fsync(self._file)
            os.replace(self._part, self._to)
            sync_folder(self._to.parent)
        return True

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown(wait=True)
        self._syncer.shutdown(wait=True)
        os.close(self._file)

    def _hash_up(self) -> None:
        while block := os.pread(self._file, _BLOCK_BYTES, self.offset):
            self._hash.update(block)
            self.offset += len(block)
        self._synced = self.offset

    def _settle(self, most_waiting: int) -> None:
        with self._disk_errors():
            while len(self._waiting) > most_waiting:
                self._waiting.popleft().result()

    def _store(self, chunk: bytes, offset: int) -> None:
        view = memoryview(chunk)
        while view:
            view = view[os.pwrite(self._file, view, offset + len(chunk) - len(view)) :]
        self._hash.update(chunk)
        if offset + len(chunk) - self._synced >= _SYNC_BYTES:
            self._sync_behind(offset + len(chunk))

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"cannot write {self._part}: {error.strerror}. Make room; what came so far is kept."
            ) from error

    def _sync_behind(self, end: int) -> None:
        """Flush while more comes in, so that memory is not filled with what the disk must take."""
        self._wait()
        begin, self._synced = self._synced, end
        self._syncing = self._syncer.submit(_flush, self._file, begin, end - begin)

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()
            self._syncing = None


def _flush(file: int, begin: int, num_bytes: int) -> None:
    os.fdatasync(file)
    with contextlib.suppress(OSError):
        os.posix_fadvise(file, begin, num_bytes, os.POSIX_FADV_DONTNEED)
