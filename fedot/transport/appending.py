"""One stream of bytes into one upload: written by one thread, made durable by another.

Design note: the thread that receives writes, and waits for nothing else. The thread that answers
calls `sync`, which hashes what was written before it began, makes it durable, and only then tells
the offset. Of two streams into one upload the newer wins: who reconnects must not wait until the
server notices that the old connection is dead. What the older had not made durable is cut off.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from fedot.errors import FedotError, TransportError, WireError
from fedot.transport.disk import Disk
from fedot.transport.errors import Busy, OutOfStep

__all__ = ["ACK_BYTES", "Appending", "Part"]

ACK_BYTES = 4 * 2**20
# A slow stream is acknowledged so often, or the other side would take it for a dead one.
_ACK_S = 0.5
_DISK_RETRY_S = 30.0
_BLOCK_BYTES = 2**20
# Twice what an honest site has on its way.
_MOST_AHEAD = 2**24


class Part:
    """An upload that is open: its file, how far it is durable, and the hash up to there.

    All but `path` and `size` is guarded by `changed`.
    """

    def __init__(self, path: Path, size: int, durable: int):
        self.path, self.size = path, size
        self.changed = threading.Condition()
        self.durable = durable
        self.stream: Appending | None = None
        # After a restart the hash lies behind; `hash_up` reads what it lacks.
        self.hashed, self.hash = 0, sha256()

    def cut(self) -> None:
        """End the stream that is open; its next step fails."""
        with self.changed:
            self.stream = None
            self.changed.notify_all()

    def check_whole(self) -> None:
        """Are all bytes durable? The caller holds `changed`.

        Raises:
            OutOfStep: some are missing.
        """
        if self.durable != self.size:
            raise OutOfStep(
                f"{self.durable} of {self.size} bytes are durable; send the rest, then commit."
            )

    def hash_up(self, disk: Disk) -> str:
        """The digest of all durable bytes; the caller holds `changed`."""
        if self.hashed == self.durable:
            return self.hash.hexdigest()
        file = disk.open(self.path)
        try:
            while self.hashed < self.durable:
                most = min(_BLOCK_BYTES, self.durable - self.hashed)
                block = disk.read(file, most, self.hashed)
                if not block:
                    break
                self.hash.update(block)
                self.hashed += len(block)
        finally:
            disk.close(file)
        return self.hash.hexdigest()


class Appending:
    """A stream into a part, from where it is durable.

    Args:
        part: what it appends to; a stream that it has is cut off.
        offset: where the client thinks that the part ends.
        disk: where it is written.
        record: called with an offset that is durable, before it is told to anybody.

    Raises:
        OutOfStep: the part ends elsewhere; nothing is written.
    """

    def __init__(self, part: Part, offset: int, disk: Disk, record: Callable[[int], None]):
        self._part, self._disk, self._record = part, disk, record
        self._ended = False
        self._error: FedotError | None = None
        with part.changed:
            part.cut()
            if offset != part.durable:
                raise OutOfStep(
                    f"the upload goes on at byte {part.durable}, not at {offset}; ask for its "
                    "offset again."
                )
            self._written, self._hash = offset, part.hash.copy()
            # After a restart the hash lies behind, and `hash_up` reads the file in the end.
            self._hashes = part.hashed == offset
            self._unhashed: list[bytes] = []
            self._file = disk.open(part.path)
            part.stream = self

    def write(self, chunk: bytes) -> None:
        """Write the next bytes; they are not durable yet.

        Raises:
            WireError: they go beyond the upload's size; none of them is written.
            TransportError: the stream was cut off.
            Busy: the disk does not take them.
        """
        part = self._part
        with part.changed:
            # Whoever sends faster than the disk takes it must not fill the memory.
            part.changed.wait_for(lambda: self._ahead() < _MOST_AHEAD or part.stream is not self)
            self._check_open()
            end = self._written + len(chunk)
            if end > self._part.size:
                raise WireError(
                    f"the upload was announced with {self._part.size} bytes and has more; none of "
                    "the rest is kept."
                )
            try:
                self._disk.write(self._file, memoryview(chunk), self._written)
            except OSError as error:
                raise _disk_error(error) from error
            if self._hashes:
                self._unhashed.append(chunk)
            was_clean = self._ahead() == 0
            self._written = end
            if was_clean or self._ahead() >= ACK_BYTES:
                part.changed.notify_all()

    def take(self, chunks: Iterator[bytes]) -> None:
        """Write all that comes; for a thread of its own. `sync` raises what this meets."""
        # What is no FedotError is this thread's to report: whoever waits hears that it broke off.
        self._error = TransportError(
            "the server could not go on with the stream; its log says why. Go on from the last "
            "offset."
        )
        try:
            for chunk in chunks:
                self.write(chunk)
            self._error = None
        except FedotError as error:
            self._error = error
        finally:
            with self._part.changed:
                self._ended = True
                self._part.changed.notify_all()

    def wait(self) -> bool:
        """Wait until there is something to make durable; False: the stream has ended."""
        part = self._part
        with part.changed:
            part.changed.wait_for(lambda: self._is_due(1))
            part.changed.wait_for(lambda: self._is_due(ACK_BYTES), _ACK_S)
            self._check_open()
            return self._written > part.durable

    def sync(self) -> int:
        """Make durable and record what was written before this call; the offset.

        Raises:
            TransportError: the stream was cut off.
            Busy: the disk failed; the upload ends where it was durable before.
        """
        part = self._part
        with part.changed:
            self._check_open()
            written, chunks, self._unhashed = self._written, self._unhashed, []
        for chunk in chunks:
            self._hash.update(chunk)
        try:
            self._disk.fdatasync(self._file)
            with part.changed:
                self._check_open()
                part.durable = written
                if self._hashes:
                    part.hashed, part.hash = written, self._hash.copy()
                part.changed.notify_all()
            # A newer stream may record more before this; the table never goes back.
            self._record(written)
        except (OSError, sqlite3.OperationalError) as error:
            # The kernel may have dropped the pages that it could not write: they are lost, and
            # another fdatasync would not say so.
            part.cut()
            raise _disk_error(error) from error
        return written

    def end(self) -> None:
        """Let go of the part, and raise what `take` met."""
        self.leave()
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Let go of the part; the next write fails."""
        with self._part.changed:
            if self._part.stream is self:
                self._part.stream = None
            if self._file >= 0:
                self._disk.close(self._file)
                self._file = -1
            self._part.changed.notify_all()

    def _ahead(self) -> int:
        """How much is written that is not durable."""
        return self._written - self._part.durable

    def _is_due(self, num_bytes: int) -> bool:
        part = self._part
        is_open = part.stream is self
        return not is_open or self._ended or self._ahead() >= num_bytes

    def _check_open(self) -> None:
        if self._part.stream is not self:
            raise TransportError("a newer stream, or the end of the round, cut this one off.")


def _disk_error(error: Exception) -> Busy:
    return Busy(f"the server's disk does not take more now: {error}. Try later.", _DISK_RETRY_S)
