"""The entropy coders: DEFLATE, gzip and zstd, each section a whole standard stream.

Encoding uses isal (igzip), and zlib-ng's Huffman-only mode where a sample shows it to be smaller.
Decoding stops one byte past the size that the section may have: a bomb never goes off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import zstandard
from isal import igzip_lib, isal_zlib
from zlib_ng import zlib_ng

from fedot.errors import WireError

__all__ = ["CODERS", "Coder"]

Buffer = bytes | memoryview

_SAMPLE = 4096
_WORTHWHILE = 0.995
_SKEWED = 0.85
_MAX_WINDOW = 2**21
_RAW, _GZIP = -15, 31


@dataclass(frozen=True, slots=True)
class Coder:
    """A pair of pure functions.

    Attributes:
        encode: bytes, level -> a whole stream, or the bytes themselves where a sample of them
            shows that they would not shrink.
        decode: a whole stream, most bytes that may come out -> bytes; raises `WireError`.
    """

    encode: Callable[[Buffer, int], Buffer]
    decode: Callable[[bytes, int], bytes]


def _deflate(data: Buffer, level: int) -> Buffer:
    return _smallest(data, level, igzip_lib.COMP_DEFLATE, _RAW)


def _gzip(data: Buffer, level: int) -> Buffer:
    return _smallest(data, level, igzip_lib.COMP_GZIP, _GZIP)


def _smallest(data: Buffer, level: int, flag: int, wbits: int) -> Buffer:
    """Compress with whichever encoder makes less of a sample from the middle, or not at all."""
    start = max(0, (len(data) - _SAMPLE) // 2)
    sample = data[start : start + _SAMPLE]
    fast = len(igzip_lib.compress(sample, level, flag))
    if fast > _WORTHWHILE * len(sample):
        return data
    # Where symbols are nearly equally frequent, the two do the same.
    if fast < _SKEWED * len(sample) and len(_huffman(sample, wbits)) < 0.97 * fast:
        return _huffman(data, wbits)
    result: bytes = igzip_lib.compress(data, level, flag)
    return result


def _huffman(data: Buffer, wbits: int) -> bytes:
    """Symbols by their frequency, no search for repeats: best for the high bytes of floats."""
    stream = zlib_ng.compressobj(1, zlib_ng.DEFLATED, wbits, 9, zlib_ng.Z_HUFFMAN_ONLY)
    return stream.compress(data) + stream.flush()


def _inflate(data: bytes, most: int, wbits: int) -> bytes:
    stream = isal_zlib.decompressobj(wbits)
    try:
        raw: bytes = stream.decompress(data, most + 1)
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub calls the class an instance
        raise WireError(
            f"a section is not valid DEFLATE ({error}); it must be sent anew."
        ) from error
    if len(raw) > most:
        raise WireError(f"a section unpacks to more than its {most} bytes; it is refused.")
    if not stream.eof or stream.unused_data:
        raise WireError("a section's DEFLATE stream is cut off or followed by other bytes.")
    return raw


def _zstd(data: Buffer, level: int) -> Buffer:
    return zstandard.ZstdCompressor(level=level).compress(data)


def _unzstd(data: bytes, most: int) -> bytes:
    try:
        # The decompressor allocates what the stream claims, so the claims are checked first.
        claimed = zstandard.get_frame_parameters(data)
        if not 0 < claimed.content_size <= most or claimed.window_size > _MAX_WINDOW:
            raise WireError(
                f"a section claims {claimed.content_size} bytes and a window of "
                f"{claimed.window_size}; it may have 1 to {most}, and {_MAX_WINDOW}."
            )
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"a section is not valid zstd ({error}); it must be sent anew.") from error


CODERS: Mapping[str, Coder] = {
    "deflate": Coder(_deflate, lambda data, most: _inflate(data, most, _RAW)),
    "gzip": Coder(_gzip, lambda data, most: _inflate(data, most, _GZIP)),
    "zstd": Coder(_zstd, _unzstd),
}
