"""How bulk bytes look on the wire: a chunk with its checksum, an acknowledgement, a place.

Every bulk message is 4 bytes of CRC-32C (big endian) and the chunk; an acknowledgement is 8 bytes
(big endian). What an append goes on with stands in its metadata.
"""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c

from fedot.errors import WireError
from fedot.transport.errors import OutOfStep

__all__ = [
    "APPEND",
    "DOWNLOAD",
    "FRAME_BYTES",
    "frame",
    "offset_in",
    "offset_message",
    "place_in",
    "place_metadata",
    "unframe",
]

APPEND = "/fedot.v1.Bulk/Append"
DOWNLOAD = "/fedot.v1.Bulk/Download"
FRAME_BYTES = 4
_UPLOAD_ID, _OFFSET = "upload-id", "offset"
_OFFSET_BYTES = 8


def frame(chunk: bytes) -> bytes:
    """A message: CRC-32C of the chunk, then the chunk."""
    checksum: int = google_crc32c.value(chunk)
    return checksum.to_bytes(FRAME_BYTES, "big") + chunk


def unframe(message: bytes, most_bytes: int) -> bytes:
    """The chunk in a message.

    Raises:
        WireError: it is empty or too long.
        OutOfStep: it was damaged; it can be sent again.
    """
    if not FRAME_BYTES < len(message) <= FRAME_BYTES + most_bytes:
        raise WireError(
            f"a bulk message of {len(message)} bytes; it must have {FRAME_BYTES} of CRC-32C, then "
            f"1 to {most_bytes}."
        )
    chunk = message[FRAME_BYTES:]
    if google_crc32c.value(chunk) != int.from_bytes(message[:FRAME_BYTES], "big"):
        raise OutOfStep("a chunk was damaged on its way; send again from the last offset.")
    return chunk


def offset_message(offset: int) -> bytes:
    """An acknowledgement."""
    return offset.to_bytes(_OFFSET_BYTES, "big")


def offset_in(message: bytes) -> int:
    """The offset in an acknowledgement.

    Raises:
        WireError: it is none.
    """
    if len(message) != _OFFSET_BYTES:
        raise WireError(f"an acknowledgement of {len(message)} bytes; it must have 8.")
    return int.from_bytes(message, "big")


def place_metadata(upload_id: str, offset: int) -> tuple[tuple[str, str], ...]:
    """The metadata of an append: which upload, and from where on."""
    return ((_UPLOAD_ID, upload_id), (_OFFSET, str(offset)))


def place_in(metadata: Sequence[tuple[str, str | bytes]]) -> tuple[str, int]:
    """What `place_metadata` says.

    Raises:
        WireError: it is missing, there twice, or no number.
    """
    values = [value for key, value in metadata if key == _UPLOAD_ID]
    offsets = [value for key, value in metadata if key == _OFFSET]
    if len(values) != 1 or len(offsets) != 1:
        raise WireError(f"an append needs {_UPLOAD_ID} and {_OFFSET} in its metadata, once each.")
    upload_id, offset = str(values[0]), str(offsets[0])
    if not (offset.isascii() and offset.isdigit() and len(offset) < 20):
        raise WireError("an append's offset must be a whole number of bytes.")
    return upload_id, int(offset)
