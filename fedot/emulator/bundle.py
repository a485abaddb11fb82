"""The bundle: what a data owner gets instead of the full model.

A directory with an ordinary shallower checkpoint (plain `transformers` loads it), its tokenizer and
`fedot-bundle.json`. Only safetensors and JSON are read, never code, and every file is checked
against its digest before anything is loaded from it. The manifest has all digests, so whoever signs
the manifest signs the bundle.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedot.emulator.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    in_file,
    read_manifest,
    sha256_of,
    signature_in,
    signed_bytes,
)
from fedot.errors import WireError
from fedot.journal import sync_folder, write_durably
from fedot.models.adapters import AdapterSpec, are_block_numbers
from fedot.models.anatomy import load_model

__all__ = ["Bundle", "read_bundle", "write_bundle", "write_signature"]

_INDEX = "model.safetensors.index.json"
_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")
# With these transformers gets kernels from a hub, wherever it finds them, and runs them.
_LEADS_AWAY = {
    "attn_implementation", "_attn_implementation", "experts_implementation",
    "_experts_implementation", "use_kernels", "kernel_config",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle on disk.

    Attributes:
        folder: where it is.
        layer_map: the full model's number of each of the emulator's blocks.
        adapter: what trains, in full-model coordinates.
        num_bytes: all files together.
        built: how the emulator was made, for people.
        signature: of the manifest, by `write_signature`; None while it is not signed. Only
            `read_bundle(..., verify=...)` has checked it.
    """

    folder: Path
    layer_map: tuple[int, ...]
    adapter: AdapterSpec
    num_bytes: int
    built: Mapping[str, Any]
    signature: bytes | None = None

    def load(self, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
        """The emulator (or the full model, where there is no emulator).

        Raises:
            WireError: it has another number of blocks than the layer map.
        """
        model = load_model(str(self.folder), dtype, device)
        depth = model.config.num_hidden_layers
        if depth != len(self.layer_map):
            raise WireError(
                f"bundle {self.folder}: the layer map names {len(self.layer_map)} blocks, the "
                f"model has {depth}; get the bundle again."
            )
        return model


def write_bundle(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layer_map: tuple[int, ...],
    adapter: AdapterSpec,
    built: Mapping[str, Any],
) -> Bundle:
    """Write a bundle; it is at `folder` whole or not at all."""
    draft = folder.with_name(folder.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    model.save_pretrained(str(draft))
    tokenizer.save_pretrained(str(draft))
    files = {path.name: sha256_of(path) for path in sorted(draft.iterdir())}
    manifest = {
        "format_version": FORMAT_VERSION,
        "layer_map": list(layer_map),
        "adapter": adapter.to_json(),
        "built": dict(built),
        "files": files,
        # Set when a bundle leaves for a site, and when a leakage audit was made.
        "signature": None,
        "leakage_report": None,
    }
    (draft / MANIFEST).write_bytes(in_file(manifest))
    for path in draft.iterdir():
        _sync(path)
    sync_folder(draft)
    os.replace(draft, folder)
    sync_folder(folder.parent)
    return read_bundle(folder)


def write_signature(folder: Path, sign: Callable[[bytes], bytes]) -> Bundle:
    """Sign a bundle before it leaves; the manifest is replaced whole.

    Args:
        folder: of a bundle that `write_bundle` wrote or `read_bundle` checked.
        sign: from a message to its signature.
    """
    manifest = read_manifest(folder)
    manifest["signature"] = sign(signed_bytes(manifest)).hex()
    write_durably(folder / MANIFEST, in_file(manifest))
    return _bundle(folder, manifest)


def read_bundle(folder: Path, verify: Callable[[bytes, bytes], None] | None = None) -> Bundle:
    """Check a bundle's files against its manifest.

    Args:
        folder: where it is.
        verify: is called with what was signed and the signature, and raises if they do not belong
            together. With it a bundle must be signed, and no other file is opened before.

    Raises:
        ConfigError: there is no bundle at `folder`.
        WireError: it is not signed, or a file is missing, unknown, of another kind, or not what
            its digest says. What `verify` raises goes through.
    """
    manifest = read_manifest(folder, verify)
    _check_files(folder, manifest["files"])
    return _bundle(folder, manifest)


def _bundle(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    try:
        layer_map, built = manifest["layer_map"], manifest["built"]
        adapter = AdapterSpec.from_json(manifest["adapter"])
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"{folder / MANIFEST} lacks or misstates {error}.") from error
    if not are_block_numbers(layer_map) or not set(adapter.blocks) <= set(layer_map):
        raise WireError(
            f"{folder / MANIFEST}: the layer map must be ascending numbers of blocks, those that "
            "the adapter trains among them; get the bundle again."
        )
    if not isinstance(built, dict):
        raise WireError(f"{folder / MANIFEST} does not say how it was built.")
    return Bundle(
        folder=folder,
        layer_map=tuple(layer_map),
        adapter=adapter,
        num_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        built=built,
        signature=signature_in(folder, manifest),
    )


def _check_files(folder: Path, digests: Mapping[str, str]) -> None:
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    if present != set(digests):
        odd = sorted(present ^ set(digests))[0]
        raise WireError(f"bundle {folder}: {odd} is missing or not listed; get the bundle again.")
    for name, digest in digests.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise WireError(f"bundle {folder}: {name} is no kind of file that a bundle may hold.")
        if sha256_of(path) != digest:
            raise WireError(f"bundle {folder}: {name} differs from its digest; get it again.")
    _refuse_references(folder, set(digests))


def _refuse_references(folder: Path, names: set[str]) -> None:
    """A file may be what its digest says and still lead to one that has none, or to code."""
    index = folder / _INDEX
    if index.exists():
        files = _json(index).get("weight_map")
        if not isinstance(files, dict) or not {*map(str, files.values())} <= names:
            raise WireError(f"bundle {folder}: {_INDEX} names files that are not of the bundle.")
    for name in _CONFIGS:
        path = folder / name
        odd = sorted(_keys(_json(path)) & _LEADS_AWAY) if path.exists() else []
        if odd:
            raise WireError(
                f"bundle {folder}: {name} sets {odd[0]}, which may fetch and run code; the owner "
                "must take it out."
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"{path} is not valid JSON; get the bundle again.") from error
    if not isinstance(found, dict):
        raise WireError(f"{path} must hold an object; get the bundle again.")
    return found


def _keys(value: Any) -> set[str]:
    """All keys at all depths."""
    if isinstance(value, dict):
        return {*value, *(key for inner in value.values() for key in _keys(inner))}
    if isinstance(value, list):
        return {key for inner in value for key in _keys(inner)}
    return set()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
