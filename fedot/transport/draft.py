"""A file that a site is downloading: `NAME.part` until it is whole and checked."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from fedot.errors import ConfigError, WireError
from fedot.journal import sync_folder

__all__ = ["Draft"]

_BLOCK_BYTES = 2**20
_SYNC_BYTES = 32 * 2**20


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
        self._syncer = ThreadPoolExecutor(1, "fedot-sync")
        self._syncing: Future[None] | None = None
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.offset, self._hash = 0, sha256()
        if os.fstat(self._file).st_size > size:
            os.ftruncate(self._file, 0)
        self._hash_up()
        self._was_resumed = self.offset > 0

    def write(self, chunk: bytes) -> None:
        """Add the next bytes.

        Raises:
            WireError: the file was announced smaller.
            ConfigError: the disk does not take them.
        """
        if self.offset + len(chunk) > self._size:
            raise WireError(
                f"a file that was announced with {self._size} bytes has more; ask the model owner."
            )
        try:
            view = memoryview(chunk)
            while view:
                view = view[os.pwrite(self._file, view, self.offset + len(chunk) - len(view)) :]
            self._hash.update(chunk)
            self.offset += len(chunk)
            if self.offset - self._synced >= _SYNC_BYTES:
                self._sync_behind()
        except OSError as error:
            raise ConfigError(
                f"cannot write {self._part}: {error.strerror}. Make room; what came so far is kept."
            ) from error

    def finish(self) -> bool:
        """Check the whole file and give it its name; False: it must be downloaded from 0 again.

        Raises:
            WireError: it is not what was announced.
        """
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
        self._wait()
        os.fsync(self._file)
        os.replace(self._part, self._to)
        sync_folder(self._to.parent)
        return True

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self._syncer.shutdown(wait=True)
        os.close(self._file)

    def _hash_up(self) -> None:
        while block := os.pread(self._file, _BLOCK_BYTES, self.offset):
            self._hash.update(block)
            self.offset += len(block)
        self._synced = self.offset

    def _sync_behind(self) -> None:
        """Flush while more comes in, so that memory is not filled with what the disk must take."""
        self._wait()
        begin, self._synced = self._synced, self.offset
        self._syncing = self._syncer.submit(_flush, self._file, begin, self.offset - begin)

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()
            self._syncing = None


def _flush(file: int, begin: int, num_bytes: int) -> None:
    os.fdatasync(file)
    with contextlib.suppress(OSError):
        os.posix_fadvise(file, begin, num_bytes, os.POSIX_FADV_DONTNEED)
