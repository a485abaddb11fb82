"""What stands before the frames: format, chain, and a digest of the tensors' names and shapes.

    "fedot" | version | length of the chain's text | SHA-256 of the spec | text | crc32

Design note: no table of tensors travels. The receiver knows which tensors it expects; both sides
lay them end to end in the order of their names and hash the same canonical text. So a payload
cannot express gaps, overlaps, duplicates, unknown or missing tensors or other shapes: it can only
have another digest, and is refused before a byte is allocated for it.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256

from fedot.compression.chain import Chain, plan, text_of
from fedot.errors import WireError

__all__ = ["MAX_TEXT_BYTES", "MAX_VALUES", "TensorSpec", "read_manifest", "spec_digest"]
__all__ += ["num_values", "write_manifest"]

MAX_TEXT_BYTES = 256
MAX_VALUES = 2**40

_MAGIC, _VERSION = b"fedot", 1
_HEAD = struct.Struct("<5sBH32s")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a receiver expects of one tensor; dtype is float32, bfloat16 or float16."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_values(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)


def num_values(spec: Mapping[str, TensorSpec]) -> int:
    """Values of all tensors together.

    Raises:
        ValueError: more than the format can carry.
    """
    total = sum(tensor.num_values for tensor in spec.values())
    if total > MAX_VALUES:
        raise ValueError(f"the tensors have {total} values; a payload carries {MAX_VALUES} at most")
    return total


def spec_digest(spec: Mapping[str, TensorSpec]) -> bytes:
    """SHA-256 of the canonical text of names, dtypes and shapes."""
    rows = [[name, spec[name].dtype, list(spec[name].shape)] for name in sorted(spec)]
    return sha256(json.dumps(rows, separators=(",", ":")).encode("ascii")).digest()


def write_manifest(chain: Chain, spec: Mapping[str, TensorSpec]) -> bytes:
    """The bytes before the first frame."""
    text = text_of(chain).encode("ascii")
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"the chain's text has {len(text)} bytes; {MAX_TEXT_BYTES} is the limit")
    head = _HEAD.pack(_MAGIC, _VERSION, len(text), spec_digest(spec)) + text
    return head + _CRC.pack(zlib.crc32(head))


def read_manifest(
    read: Callable[[int], bytes], spec: Mapping[str, TensorSpec], allowed: Collection[Chain]
) -> Chain:
    """Check everything that comes before the first frame and return the chain.

    Args:
        read: returns exactly that many bytes or raises `WireError`.
        spec: the expected tensors.
        allowed: chains that the receiver's policy accepts.

    Raises:
        WireError: not this format or version, another chain, or other tensors.
    """
    head = read(_HEAD.size)
    magic, version, length, digest = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise WireError("the bytes are not a fedot payload; they must begin with 'fedot'.")
    if version != _VERSION:
        raise WireError(f"the payload has format version {version}; this reader knows {_VERSION}.")
    if length > MAX_TEXT_BYTES:
        raise WireError(f"the manifest's chain claims {length} bytes; {MAX_TEXT_BYTES} is the cap.")
    text = read(length)
    if _CRC.unpack(read(_CRC.size))[0] != zlib.crc32(head + text):
        raise WireError("the manifest's CRC-32 does not match; the payload must be sent anew.")
    chains = {text_of(planned).encode("ascii"): planned for planned in (plan(*c) for c in allowed)}
    if text not in chains:
        known = ", ".join(sorted(chain.decode("ascii") for chain in chains)) or "none"
        raise WireError(f"the payload's chain is not one that is allowed here: {known}.")
    if digest != spec_digest(spec):
        raise WireError(
            f"the payload holds other tensors than the {len(spec)} expected: a name, shape or "
            "dtype differs. Both sides must use the same adapter."
        )
    return chains[text]
