"""Get a run's bundle to a site: signed, checked file by file, and resumed where it broke off."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fedot.cards import RunCard
from fedot.emulator.manifest import MANIFEST, read_manifest
from fedot.errors import ConfigError, WireError
from fedot.journal import sync_folder
from fedot.messages import Progress
from fedot.transport.binding import Binding, File
from fedot.transport.channel import Channel, Done
from fedot.transport.identity import Kit

__all__ = ["fetch_bundle", "shown"]

# A manifest names files and blocks; this is far above any.
_MOST_MANIFEST_BYTES = 2**24
_STAGE = "get bundle"


def fetch_bundle(
    channel: Channel, kit: Kit, folder: Path, card: RunCard, site: str, progress: Progress
) -> Path:
    """The folder of a run's bundle, downloaded if it is not there yet.

    Bundles of earlier runs make room for it: each may have tens of GB.

    The manifest comes first: its digest must be the run's and its signature the owner's before any
    other file is asked for, and it alone says which files there are and what they hold.

    Raises:
        WireError: the manifest or a file is not what was promised.
        TransportError: the server cannot be reached.
    """
    whole = folder / card.bundle_digest
    if whole.is_dir():
        # The site may have been told of another owner since.
        read_manifest(whole, kit.verify)
        return whole
    draft = folder / f"{card.bundle_digest}.part"
    draft.mkdir(parents=True, exist_ok=True)
    binding = Binding(card.run_id, 0, site, card.bundle_digest)
    offered = _Offered({file.name: file for file in channel.files(binding)})
    manifest = offered[MANIFEST]
    if manifest.size > _MOST_MANIFEST_BYTES:
        raise WireError(
            f"the bundle's {MANIFEST} has {manifest.size} bytes; the limit is "
            f"{_MOST_MANIFEST_BYTES}. Ask the model owner."
        )

    def get(name: str, digest: str, moved: Done) -> None:
        # One that is there was checked when it was renamed.
        if not (draft / name).exists():
            file = File(name, offered[name].size, digest)
            channel.download(binding, file, draft / name, moved)

    get(MANIFEST, card.bundle_digest, lambda done, size: None)
    files = read_manifest(draft, kit.verify)["files"]
    for other in folder.iterdir():
        if other != draft:
            shutil.rmtree(other)
    num_bytes, before = sum(offered[name].size for name in files), 0
    if num_bytes > card.bundle_bytes:
        raise WireError(
            f"the bundle's files have {num_bytes} bytes and the run said {card.bundle_bytes}; "
            "nothing was downloaded. Ask the model owner."
        )
    _refuse_without_room(draft, num_bytes)
    for name, digest in sorted(files.items()):
        get(name, digest, _part_of_all(progress, before, num_bytes))
        before += offered[name].size
    sync_folder(draft)
    os.replace(draft, whole)
    sync_folder(folder)
    progress(_STAGE, num_bytes, num_bytes)
    return whole


def _part_of_all(progress: Progress, before: int, num_bytes: int) -> Done:
    """Many files are one stage; it ends when the bundle is there, not with a last byte."""
    return lambda done, size: progress(_STAGE, min(before + done, num_bytes - 1), num_bytes)


def shown(progress: Progress, stage: str) -> Done:
    """A transfer's progress as a stage of its own."""
    return lambda done, total: progress(stage, done, total)


class _Offered(dict[str, File]):
    """Files that the server offers, by name."""

    def __missing__(self, name: str) -> File:
        raise WireError(f"the server does not offer {name}, which is part of the bundle.")


def _refuse_without_room(draft: Path, num_bytes: int) -> None:
    have = sum(path.stat().st_size for path in draft.iterdir())
    free = shutil.disk_usage(draft).free
    if num_bytes - have > free:
        raise ConfigError(
            f"the bundle needs {num_bytes} bytes and {draft} has room for {free}; free some space, "
            "or name another --home."
        )
