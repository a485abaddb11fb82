"""Get a run's bundle to a site: signed, checked file by file, and resumed where it broke off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from fedot.cards import RunCard
from fedot.emulator.manifest import MANIFEST, read_manifest
from fedot.errors import WireError
from fedot.journal import sync_folder
from fedot.messages import Progress
from fedot.transport import fedot_pb2 as pb
from fedot.transport.channel import Channel
from fedot.transport.identity import Kit

__all__ = ["fetch_bundle"]

# A manifest names files and blocks; this is far above any.
_MOST_MANIFEST_BYTES = 2**24


def fetch_bundle(
    channel: Channel, kit: Kit, folder: Path, card: RunCard, site: str, progress: Progress
) -> Path:
    """The folder of a run's bundle, downloaded if it is not there yet.

    The manifest comes first: its digest must be the run's and its signature the owner's before any
    other file is asked for, and it alone says which files there are and what they hold.

    Raises:
        WireError: the manifest or a file is not what was promised.
        TransportError: the server cannot be reached.
    """
    whole = folder / card.bundle_digest
    if whole.is_dir():
        return whole
    draft = folder / f"{card.bundle_digest}.part"
    draft.mkdir(parents=True, exist_ok=True)
    binding = pb.Binding(run_id=card.run_id, site=site, digest=card.bundle_digest)
    sizes = _sizes(channel, binding)
    if sizes[MANIFEST] > _MOST_MANIFEST_BYTES:
        raise WireError(
            f"the bundle's {MANIFEST} has {sizes[MANIFEST]} bytes; the limit is "
            f"{_MOST_MANIFEST_BYTES}. Ask the model owner."
        )
    path = draft / MANIFEST
    _get(channel, binding, path, sizes, card.bundle_digest, progress)
    files = read_manifest(draft, kit.verify)["files"]
    needed, free = sum(map(sizes.__getitem__, files)), shutil.disk_usage(draft).free
    if needed > free + sum(each.stat().st_size for each in draft.iterdir()):
        raise WireError(
            f"the bundle has {needed} bytes and {draft} has room for {free}; free some."
        )
    for name, digest in sorted(files.items()):
        _get(channel, binding, draft / name, sizes, digest, progress)
    sync_folder(draft)
    os.replace(draft, whole)
    sync_folder(folder)
    return whole


class _Sizes(dict[str, int]):
    """Sizes of the files that the server offers."""

    def __missing__(self, name: str) -> int:
        raise WireError(f"the server does not offer {name}, which is part of the bundle.")


def _sizes(channel: Channel, binding: pb.Binding) -> _Sizes:
    offered = channel.call("ListFiles", pb.FilesRequest(binding=binding)).files
    return _Sizes({file.name: file.size for file in offered})


def _get(
    channel: Channel,
    binding: pb.Binding,
    path: Path,
    sizes: Mapping[str, int],
    digest: str,
    progress: Progress,
) -> None:
    """One file, whole and checked; one that is there already was checked when it was renamed."""
    if not path.exists():
        channel.download(binding, path.name, sizes[path.name], digest, path, progress)
