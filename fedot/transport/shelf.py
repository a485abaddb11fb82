"""What the server offers for download: files by the digest of what they belong to, and their name.

A name that a peer sends is only ever looked up in this table; it never becomes a path.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from fedot.errors import ConfigError, WireError
from fedot.transport.binding import File, check_name

__all__ = ["Shelf"]


@dataclass(frozen=True, slots=True)
class _Kept:
    file: File
    path: Path


class Shelf:
    """Files on offer. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._sets: dict[str, dict[str, _Kept]] = {}

    def put(
        self, digest: str, files: Mapping[str, Path], sha256: Mapping[str, str] | None = None
    ) -> None:
        """Offer files; they must not change as long as they are offered.

        Args:
            digest: by which sites ask for them.
            files: path by name.
            sha256: digest by name where it is known already; the others are computed.
        """
        known = sha256 or {}
        kept = {}
        for name, path in files.items():
            file = File(check_name(name), path.stat().st_size, known.get(name) or _digest_of(path))
            kept[name] = _Kept(file, path)
        with self._guard:
            self._sets[digest] = kept

    def files(self, digest: str) -> Sequence[File]:
        """What is offered under a digest, by name.

        Raises:
            WireError: nothing is.
        """
        return [kept.file for _, kept in sorted(self._set(digest).items())]

    def open(self, digest: str, name: str, offset: int) -> tuple[int, File]:
        """A file descriptor to read from, which the caller closes.

        Raises:
            WireError: there is no such file, or it ends before `offset`.
            ConfigError: the file is not what was put here.
        """
        kept = self._set(digest).get(name)
        if kept is None:
            raise WireError("there is no file of that name; ask for the list of files.")
        if not 0 <= offset <= kept.file.size:
            raise WireError(
                f"offset {offset} is outside the file of {kept.file.size} bytes; start from 0."
            )
        try:
            opened = os.open(kept.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"cannot read {kept.path}: {error.strerror}; restore it.") from error
        if os.fstat(opened).st_size != kept.file.size:
            os.close(opened)
            raise ConfigError(f"{kept.path} was changed while it was offered; offer it again.")
        return opened, kept.file

    def remove(self, digest: str) -> None:
        """Offer it no more; downloads that are open go on."""
        with self._guard:
            self._sets.pop(digest, None)

    def _set(self, digest: str) -> dict[str, _Kept]:
        with self._guard:
            found = self._sets.get(digest)
        if found is None:
            raise WireError("nothing is offered under that digest; ask for the task again.")
        return found


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
