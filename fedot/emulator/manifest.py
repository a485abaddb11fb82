"""The manifest of a bundle: which files it has, what they hold, and the owner's signature.

No torch here: a bundle is signed, offered and checked before anybody loads a model of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedot.errors import ConfigError, WireError
from fedot.journal import write_durably

__all__ = ["MANIFEST", "bundle_digest", "read_manifest", "sign_manifest"]

MANIFEST = "fedot-bundle.json"
FORMAT_VERSION = 1
# A peer chose these names: nothing but plain weights, JSON and tokenizer text is ever opened.
ALLOWED_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model"}

Verify = Callable[[bytes, bytes], None]
"""Given a message and its signature; raises a `WireError` unless it is the owner's."""


def read_manifest(path: Path, verify: Verify | None = None) -> dict[str, Any]:
    """Read and check a manifest: version, file names, and the signature if `verify` is given.

    Raises:
        ConfigError: there is none.
        WireError: it is not valid, names a file that a bundle may not hold, or is not signed.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"there is no bundle at {path.parent}: {MANIFEST} is missing.") from error
    except (ValueError, RecursionError) as error:
        raise WireError(f"{path} is not valid JSON; get the bundle again.") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise WireError(f"bundle format is {version!r}; this fedot reads {FORMAT_VERSION}.")
    if verify is not None:
        _check_signature(path, manifest, verify)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(d, str) for d in files.values()):
        raise WireError(f"{path} has no table of files; get the bundle again.")
    for name in files:
        if Path(name).name != name or not name.isprintable() or name[0] == ".":
            raise WireError(f"{path} lists {name!r}, which is no plain file name.")
        if Path(name).suffix not in ALLOWED_SUFFIXES or name == MANIFEST:
            raise WireError(f"{path} lists {name!r}, no kind of file that a bundle may hold.")
    return manifest


def sign_manifest(folder: Path, sign: Callable[[bytes], bytes]) -> None:
    """Put the owner's signature into a bundle's manifest; one that is signed stays as it is."""
    path = folder / MANIFEST
    manifest = read_manifest(path)
    if manifest["signature"] is None:
        manifest["signature"] = sign(_signed_bytes(manifest)).hex()
        write_durably(path, (json.dumps(manifest, indent=1) + "\n").encode())


def bundle_digest(folder: Path) -> str:
    """SHA-256 of the manifest's bytes: it has the digests of all files, so it names the bundle."""
    return sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _check_signature(path: Path, manifest: Mapping[str, Any], verify: Verify) -> None:
    signature = manifest.get("signature")
    if not isinstance(signature, str):
        raise WireError(f"{path} is not signed; a site takes only bundles that the owner signed.")
    try:
        raw = bytes.fromhex(signature)
    except ValueError as error:
        raise WireError(f"the signature in {path} is not hex; get the bundle again.") from error
    verify(_signed_bytes(manifest), raw)


def _signed_bytes(manifest: Mapping[str, Any]) -> bytes:
    """What is signed: the manifest as canonical JSON, its signature null."""
    unsigned = {**manifest, "signature": None}
    return b"fedot bundle\n" + json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode()
