"""A site's side of an upload: what it sends, and how much may be on the way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fedot.errors import ConfigError, WireError
from fedot.transport.frames import frame
from fedot.transport.stall import Pace

__all__ = ["WINDOW_BYTES", "Sending", "Source"]

WINDOW_BYTES = 8 * 2**20
"""At most so much is on the way without being acknowledged, and so lost by a cut."""


class Source:
    """A file, or bytes that are there already; a context manager that closes it."""

    def __init__(self, source: Path | bytes):
        self._bytes = source if isinstance(source, bytes) else b""
        self._file = -1
        self.size = len(self._bytes)
        if isinstance(source, Path):
            try:
                self._file = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ConfigError(f"cannot read {source}: {error.strerror}.") from error
            self.size = os.fstat(self._file).st_size

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Read so much.

        Raises:
            ConfigError: the file is shorter than it was, or cannot be read.
        """
        if self._file < 0:
            return self._bytes[offset : offset + num_bytes]
        try:
            chunk = os.pread(self._file, num_bytes, offset)
        except OSError as error:
            raise ConfigError(f"the update cannot be read: {error.strerror}.") from error
        if not chunk:
            raise ConfigError("the update became shorter while it was sent; restore it.")
        return chunk

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)


class Sending:
    """One stream of messages out of a source; gRPC draws them in a thread of its own.

    Args:
        source: what is sent.
        offset: where it begins.
        pace: how large messages are.
    """

    def __init__(self, source: Source, offset: int, pace: Pace):
        self._source, self._pace = source, pace
        self._sent = self._acknowledged = offset
        self._changed = threading.Condition()
        self._is_over = False
        self.error: ConfigError | None = None

    def messages(self) -> Iterator[bytes]:
        """All that is left of the source, as fast as it is acknowledged."""
        while (chunk := self._next()) is not None:
            began = time.monotonic()
            yield frame(chunk)
            self._pace.took(time.monotonic() - began)

    def acknowledge(self, offset: int) -> None:
        """The server has this durably.

        Raises:
            WireError: it was not even sent, or was acknowledged before.
        """
        with self._changed:
            if not self._acknowledged <= offset <= self._sent:
                raise WireError(
                    f"the server acknowledged byte {offset} of {self._sent} sent; it must stay "
                    "between what it said before and that. Ask the model owner."
                )
            self._acknowledged = offset
            self._changed.notify_all()

    @property
    def acknowledged(self) -> int:
        """Up to where the server has it durably."""
        return self._acknowledged

    def end(self) -> None:
        """Send no more; the source may be closed after this."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _next(self) -> bytes | None:
        with self._changed:
            left = min(self._pace.chunk_bytes, self._source.size - self._sent)
            self._changed.wait_for(
                lambda: self._is_over or self._sent + left - self._acknowledged <= WINDOW_BYTES
            )
            if self._is_over or not left:
                return None
            try:
                # Under the lock, so that nobody closes the file meanwhile.
                chunk = self._source.read(self._sent, left)
            except ConfigError as error:
                self.error = error
                return None
            self._sent += len(chunk)
            return chunk
