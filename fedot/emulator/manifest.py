"""The manifest of a bundle: which files it has, what they hold, and the owner's signature.

No torch here: a bundle is signed, offered and checked before anybody loads a model of it. The
manifest has the digests of all other files, so whoever signs the manifest signs the bundle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from fedot.errors import ConfigError, WireError

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "bundle_digest",
    "in_file",
    "read_manifest",
    "sha256_of",
    "signature_in",
    "signed_bytes",
]

MANIFEST = "fedot-bundle.json"
FORMAT_VERSION = 1
# What is signed starts with it: a signature of anything else can never pass for a bundle's.
_SIGNED_AS = b"fedot bundle\n"
# A peer chose these names: what transformers would look for beside them (adapters, code) is not
# among what is ever there.
_ALLOWED = re.compile(
    r"config\.json|generation_config\.json"
    r"|model\.safetensors|model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|tokenizer\.model|vocab\.json|vocab\.txt|merges\.txt|chat_template\.jinja"
)


def read_manifest(
    folder: Path, verify: Callable[[bytes, bytes], None] | None = None
) -> dict[str, Any]:
    """Read and check a manifest: its version, its signature, and the names that it lists.

    Args:
        folder: the bundle's.
        verify: is called with what was signed and the signature, and raises if they do not belong
            together. With it a bundle must be signed.

    Raises:
        ConfigError: there is no bundle at `folder`.
        WireError: it is not valid or not signed, or lists what a bundle may not hold. What `verify`
            raises goes through.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"there is no bundle at {folder}: {MANIFEST} is missing.") from error
    except (ValueError, RecursionError) as error:
        raise WireError(f"{path} is not valid JSON; get the bundle again.") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise WireError(f"bundle format is {version!r}; this fedot reads {FORMAT_VERSION}.")
    signature = signature_in(folder, manifest)
    if verify is not None:
        if signature is None:
            raise WireError(
                f"bundle {folder} is not signed; it must have the model owner's signature. Ask "
                "them for a signed one."
            )
        verify(signed_bytes(manifest), signature)
    _check_names(folder, manifest.get("files"))
    found: dict[str, Any] = manifest
    return found


def signed_bytes(manifest: Mapping[str, Any]) -> bytes:
    """What a signature of a manifest signs: its JSON in one way only, without the signature."""
    unsigned = {**manifest, "signature": None}
    text = json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return _SIGNED_AS + text.encode("ascii")


def signature_in(folder: Path, manifest: Mapping[str, Any]) -> bytes | None:
    """The signature of a manifest, None while it has none.

    Raises:
        WireError: it is no signature.
    """
    held = manifest.get("signature")
    if held is None:
        return None
    try:
        return bytes.fromhex(held)
    except (TypeError, ValueError) as error:
        raise WireError(
            f"{folder / MANIFEST}: the signature must be hex digits or null; get the bundle again."
        ) from error


def in_file(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as its file has it."""
    return (json.dumps(manifest, indent=1) + "\n").encode()


def bundle_digest(folder: Path) -> str:
    """SHA-256 of the manifest, which has the digests of all other files: the bundle's identity."""
    return sha256_of(folder / MANIFEST)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _check_names(folder: Path, digests: Any) -> None:
    if not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
        raise WireError(f"{folder / MANIFEST} has no table of files; get the bundle again.")
    for name in digests:
        if not _ALLOWED.fullmatch(name):
            raise WireError(f"bundle {folder}: {name!r} is no kind of file that a bundle may hold.")
