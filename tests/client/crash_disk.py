"""A disk that forgets: what was not synced is lost when it crashes.

Only files and folders below its root are its own. It sees every call that changes one (open for
writing, write, truncate, mkdir, replace, unlink) and every fsync, passes them on to the real file
system, and beside it keeps what a machine without power would find again: of a file its bytes at
its last fsync, of a folder its names at its last fsync.

    disk = CrashDisk(root)
    with disk.in_place(), pytest.raises(Crashed):
        disk.crash_at = 7           # before the 7th call
        work()
    disk.restart(Survives.SYNCED)   # now `root` holds what is left
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
SYNCING_HELPERS = {"sync_folder", "_append"}
Site = tuple[str, int]


class Crashed(BaseException):
    """The machine stopped; nothing in the product may catch it."""


class Survives(Enum):
    """What is left after a crash."""

    ALL = "a killed process: the page cache lives on"
    SYNCED = "no power: only what was synced"
    HALF = "no power: names as they were, and half of every file's unsynced bytes"


@dataclass(eq=False)
class File:
    durable: bytes = b""


@dataclass(eq=False)
class Folder:
    durable: dict[str, File | Folder] = field(default_factory=dict)


class CrashDisk:
    def __init__(self, root: Path):
        self.root = root
        root.mkdir()
        self.nodes: dict[Path, File | Folder] = {root: Folder()}
        self.calls = 0
        self.crash_at: int | None = None
        self.dead = False
        self.ignored_sync: Site | None = None
        self.syncs: set[Site] = set()

    # -- the machine ---------------------------------------------------------------------------

    def call(self) -> None:
        """One call that changes something; the machine may stop before it."""
        if self.dead:
            raise Crashed
        self.calls += 1
        if self.calls == self.crash_at:
            self.dead = True
            raise Crashed

    def restart(self, survives: Survives) -> None:
        """Leave on disk what outlives a crash; all of that is durable now."""
        if survives is not Survives.ALL:
            kept = self._tree(self.root, halves=survives is Survives.HALF)
            shutil.rmtree(self.root)
            self.root.mkdir()
            for path, content in kept.items():
                path.mkdir() if content is None else path.write_bytes(content)
        # A killed process' page cache is as it was: visible, and as little durable as before.
        if survives is not Survives.ALL:
            self.nodes = {self.root: Folder()}
            for path in sorted(self.root.rglob("*")):
                node = Folder() if path.is_dir() else File(path.read_bytes())
                self.nodes[path] = node
                self.nodes[path.parent].durable[path.name] = node
        self.calls, self.crash_at, self.dead = 0, None, False

    def _tree(self, folder: Path, halves: bool) -> dict[Path, bytes | None]:
        """What is found below a folder: bytes of files, None for folders; parents first."""
        node = self.nodes.get(folder)
        found: dict[Path, bytes | None] = {}

        def walk(path: Path, node: Folder) -> None:
            names = self._names(path) if halves and path.is_dir() else node.durable
            for name, child in names.items():
                if isinstance(child, Folder):
                    found[path / name] = None
                    walk(path / name, child)
                else:
                    found[path / name] = self._half(path / name, child) if halves else child.durable

        assert isinstance(node, Folder)
        walk(folder, node)
        return found

    def _names(self, folder: Path) -> dict[str, File | Folder]:
        return {path.name: node for path, node in self.nodes.items() if path.parent == folder}

    def _half(self, path: Path, node: File) -> bytes:
        written = path.read_bytes()
        if not written.startswith(node.durable):
            return node.durable
        return written[: len(node.durable) + (len(written) - len(node.durable)) // 2]

    def lost(self, path: Path) -> bytes | None:
        """A file's bytes if the power failed now; None if it would be gone."""
        return self._tree(self.root, halves=False).get(path)

    # -- its calls -----------------------------------------------------------------------------

    def _own(self, path: Any) -> Path | None:
        if isinstance(path, int):
            return None
        full = Path(os.path.abspath(path))
        return full if full == self.root or self.root in full.parents else None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, this process' file calls below the root go through the disk."""
        with mock.patch.multiple(
            os,
            fsync=self._fsync(),
            replace=self._replace(os.replace),
            unlink=self._unlink(os.unlink),
            mkdir=self._mkdir(os.mkdir),
        ):
            opened = self._open(io.open)
            with mock.patch.object(io, "open", opened), mock.patch.object(builtins, "open", opened):
                yield

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            own = self._own(path)
            if own is None or mode in ("r", "rb"):
                return real(path, mode, *rest, **named)
            self.call()
            raw = _Raw(self, own, mode)
            if own not in self.nodes:
                self.nodes[own] = File()
            if "b" not in mode:
                return io.TextIOWrapper(io.BufferedWriter(raw))
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        return opened

    def _fsync(self) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            node = self.nodes.get(path)
            if node is None:
                return
            self.call()
            site = _caller()
            self.syncs.add(site)
            if site == self.ignored_sync:
                return
            if isinstance(node, Folder):
                node.durable = self._names(path)
            else:
                node.durable = path.read_bytes()

        return fsync

    def _replace(self, real: Callable[..., None]) -> Callable[..., None]:
        def replace(source: Any, target: Any) -> None:
            self.call()
            real(source, target)
            self.nodes[Path(target)] = self.nodes.pop(Path(source))

        return replace

    def _unlink(self, real: Callable[..., None]) -> Callable[..., None]:
        def unlink(path: Any, **named: Any) -> None:
            self.call()
            real(path, **named)
            self.nodes.pop(Path(path))

        return unlink

    def _mkdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def mkdir(path: Any, *rest: Any, **named: Any) -> None:
            if self._own(path) is None or Path(path).exists():
                real(path, *rest, **named)
                return
            self.call()
            real(path, *rest, **named)
            self.nodes[Path(path)] = Folder()

        return mkdir


class _Raw(io.FileIO):
    """A file whose writes can be cut off half way."""

    def __init__(self, disk: CrashDisk, path: Path, mode: str):
        super().__init__(path, mode.replace("b", "").replace("t", ""))
        self._disk = disk

    def write(self, content: Any) -> int:
        if self._disk.dead:
            return len(content)  # buffers that are closed after the end
        try:
            self._disk.call()
        except Crashed:
            super().write(bytes(content)[: len(content) // 2])
            raise
        return super().write(content)

    def truncate(self, size: int | None = None) -> int:
        self._disk.call()
        return super().truncate(size)


def _caller() -> Site:
    """The product's line that asks for an fsync; of a helper's, the line that asks the helper."""
    frame: Any = sys._getframe(2)
    sources = (str(ROOT / "fedot"), str(ROOT / "privacy"))
    while (
        not frame.f_code.co_filename.startswith(sources) or frame.f_code.co_name in SYNCING_HELPERS
    ):
        frame = frame.f_back
    return Path(frame.f_code.co_filename).name, frame.f_lineno
