"""Updates that come in from sites: resumable, durable before they are acknowledged, counted once.

Design note: the order on disk. A part file's name is durable before any of its bytes is
acknowledged. Bytes are written, fdatasynced, recorded in SQLite, then acknowledged. A whole part is
checked against its digest, renamed, its folder synced, then recorded as whole. A crash between any
two of these leaves either the state before or one that `_recover` brings back to it. Ids are random
and made here; nothing that a peer sends becomes part of a path.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedot.errors import ConfigError, ProtocolError, WireError
from fedot.transport.appending import ACK_BYTES, Appending, Part
from fedot.transport.binding import Binding
from fedot.transport.disk import Disk
from fedot.transport.errors import Busy, Denied
from fedot.transport.limits import Limits
from fedot.transport.upload_table import Row, UploadTable

__all__ = ["ACK_BYTES", "Committed", "UploadState", "UploadStore"]

_log = logging.getLogger(__name__)
_MOST_METADATA = 2**16
_DISK_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class UploadState:
    """Where an upload stands: go on from `committed_offset`.

    Attributes:
        is_new: this very call committed it.
    """

    upload_id: str
    committed_offset: int
    is_committed: bool
    is_new: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Committed:
    """One whole update. `metadata` is JSON as the site sent it, unchecked."""

    site: str
    digest: str
    path: Path
    metadata: str


class UploadStore:
    """All uploads of a server. Thread-safe; a context manager that closes it.

    Args:
        folder: of the store alone; strange files in it are removed.
        limits: how large an upload, and all of a site in one run, may be.
        disk: for tests.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(self, folder: Path, limits: Limits, disk: Disk | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limits, self._disk = folder, limits, disk or Disk()
        self._guard = threading.Lock()
        self._parts: dict[str, Part] = {}
        self._table = UploadTable(folder / "uploads.sqlite", self._disk)
        with ExitStack() as undo:
            undo.callback(self._table.close)
            try:
                self._recover()
            except (OSError, sqlite3.OperationalError) as error:
                raise ConfigError(f"cannot use {folder}: {error}. Make room first.") from error
            undo.pop_all()

    def close(self) -> None:
        """Cut off all streams and let go of the files."""
        with self._guard:
            parts = list(self._parts.values())
        for part in parts:
            part.cut()
        self._table.close()

    def __enter__(self) -> UploadStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self, binding: Binding, size: int, metadata_json: str) -> UploadState:
        """Begin an upload; for one that is there already, where it stands.

        Raises:
            ProtocolError: the site has begun another one for this round, or has sent too much.
            WireError: it is too large.
            Busy: the disk does not take it.
        """
        if size > self._limits.max_upload_bytes:
            raise WireError(
                f"an update of {size} bytes; the limit is {self._limits.max_upload_bytes}. Use a "
                "chain that makes it smaller, or ask the model owner."
            )
        if len(metadata_json) > _MOST_METADATA:
            raise WireError(f"an update's metadata is over {_MOST_METADATA} characters.")
        with _disk_errors():
            row, is_new = self._table.create(
                binding, size, metadata_json, self._limits.max_bytes_per_site
            )
            # Also for an old one: the disk may have refused its name the last time.
            if not row.is_whole and (is_new or not row.durable):
                self._disk.create(self._draft(row.upload_id))
                self._disk.sync_folder(self._folder)
        return _state(row)

    def query(self, upload_id: str, binding: Binding) -> UploadState:
        """Where an upload stands.

        Raises:
            UnknownUpload: there is none of that id.
            Denied: it belongs to something else.
        """
        return _state(self._row(upload_id, binding))

    def owner(self, upload_id: str) -> Binding:
        """What an upload belongs to.

        Raises:
            UnknownUpload: there is none of that id.
        """
        return self._table.get(upload_id).binding

    def open(self, upload_id: str, site: str, offset: int) -> Appending:
        """A stream into an upload; one that is open is cut off.

        Raises:
            UnknownUpload: there is none of that id.
            Denied: it is another site's.
            OutOfStep: it does not go on at `offset`; nothing is written.
            ProtocolError: it is whole already.
        """
        row = self._table.get(upload_id)
        if row.binding.site != site:
            raise Denied("this upload belongs to another site; create your own.")
        if row.is_whole:
            raise ProtocolError("the upload is committed; nothing can be added to it.")
        part = self._part(row)
        with _disk_errors():
            if part.durable > row.durable:
                # The last stream could not record how far it came; what is told must be recorded.
                self._table.record(upload_id, part.durable)
            return Appending(
                part, offset, self._disk, lambda durable: self._table.record(upload_id, durable)
            )

    def append(
        self, upload_id: str, site: str, offset: int, chunks: Iterator[bytes]
    ) -> Iterator[int]:
        """Write chunks from `offset` on; yields offsets up to which all is durable.

        `chunks` is read by a thread of its own. When it ends or fails, what it gave is made durable
        first. Raises as `open`, and what `chunks` raises if that is a `FedotError`.
        """
        stream = self.open(upload_id, site, offset)
        reader = threading.Thread(target=stream.take, args=(chunks,), daemon=True)
        try:
            reader.start()
            while stream.wait():
                yield stream.sync()
        except BaseException:
            # What ended it is the reason, not what the reader meets after that.
            stream.leave()
            raise
        stream.end()

    def commit(self, upload_id: str, binding: Binding) -> UploadState:
        """Check an upload and keep it; again is a no-op.

        Raises:
            UnknownUpload, Denied: as `query`.
            OutOfStep: bytes are missing.
            WireError: its digest is wrong; it is dropped, so that it can be sent anew.
            Busy: the disk failed.
        """
        row = self._row(upload_id, binding)
        part = self._part(row)
        with part.changed, _disk_errors():
            row = self._row(upload_id, binding)
            if row.is_whole:
                return _state(row)
            part.check_whole()
            part.cut()
            if part.hash_up(self._disk) != binding.digest:
                self._forget([row])
                raise WireError(
                    "the update does not have the digest that it was announced with; it was "
                    "dropped. Send it again."
                )
            # It may have been renamed by a commit that the disk then did not let be recorded.
            if self._draft(upload_id).exists():
                self._disk.rename(self._draft(upload_id), self._kept(upload_id))
            self._disk.sync_folder(self._folder)
            self._table.record(upload_id, row.size, is_whole=True)
        with self._guard:
            self._parts.pop(upload_id, None)
        return UploadState(upload_id, row.size, True, is_new=True)

    def committed(self, run_id: str, round: int) -> Sequence[Committed]:
        """The whole updates of a round, in the order of sites."""
        return [
            Committed(row.binding.site, row.binding.digest, self._kept(row.upload_id), row.metadata)
            for row in self._table.whole(run_id, round)
        ]

    def is_committed(self, site: str, run_id: str, round: int) -> bool:
        """Whether a site's update of a round is here, whole."""
        return any(row.binding.site == site for row in self._table.whole(run_id, round))

    def drop(self, run_id: str, round: int) -> None:
        """Forget a round: its files are kept elsewhere now, or not needed. Streams are cut off.

        Raises:
            Busy: the disk failed; the round is still there, or files are that a restart removes.
        """
        with _disk_errors():
            self._forget(self._table.of_round(run_id, round))

    def drop_before(self, run_id: str, round: int) -> None:
        """Forget all rounds of a run before one.

        Raises:
            Busy: as `drop`.
        """
        with _disk_errors():
            self._forget(self._table.before(run_id, round))

    def _forget(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        # Rows first: files without a row are removed at the next start, not the other way.
        self._table.delete([row.upload_id for row in rows])
        for row in rows:
            with self._guard:
                part = self._parts.pop(row.upload_id, None)
            if part is not None:
                part.cut()
            self._disk.unlink(self._draft(row.upload_id))
            self._disk.unlink(self._kept(row.upload_id))

    def _row(self, upload_id: str, binding: Binding) -> Row:
        row = self._table.get(upload_id)
        if row.binding != binding:
            raise Denied("this upload belongs to another run, round, site or digest.")
        return row

    def _part(self, row: Row) -> Part:
        with self._guard:
            if row.upload_id not in self._parts:
                # Read again: it may have moved on since, in a part that is gone.
                durable = self._table.get(row.upload_id).durable
                self._parts[row.upload_id] = Part(self._draft(row.upload_id), row.size, durable)
            return self._parts[row.upload_id]

    def _draft(self, upload_id: str) -> Path:
        return self._folder / f"{upload_id}.part"

    def _kept(self, upload_id: str) -> Path:
        return self._folder / f"{upload_id}.update"

    def _recover(self) -> None:
        """Undo a commit that was not recorded; remove files that belong to nothing."""
        needed, lost = set(), []
        for row in self._table.all():
            draft, kept = self._draft(row.upload_id), self._kept(row.upload_id)
            if not row.is_whole and kept.exists():
                self._disk.rename(kept, draft)
            needed.add(kept if row.is_whole else draft)
            if not (kept if row.is_whole else draft).exists():
                lost.append(row.upload_id)
        if lost:
            _log.warning("%d uploads have no file; they will be asked for again", len(lost))
            self._table.delete(lost)
        for path in [*self._folder.glob("*.part"), *self._folder.glob("*.update")]:
            if path not in needed:
                self._disk.unlink(path)
        self._disk.sync_folder(self._folder)


def _state(row: Row) -> UploadState:
    return UploadState(row.upload_id, row.durable, row.is_whole)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise Busy(
            f"the server's disk does not take more now: {error}. Try later.", _DISK_RETRY_S
        ) from error
