"""Entropy coders: their output is standard, and the smaller encoder is chosen."""

from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
import pytest
import zstandard
from isal import igzip_lib

from fedot.compression.deflate import CODERS


def skewed(num_bytes: int) -> bytes:
    """High bytes of bfloat16 normals: few symbols, no repeats worth finding."""
    values = np.random.default_rng(0).standard_normal(num_bytes, dtype=np.float32)
    return values.view(np.uint8)[3::4].tobytes()


def test_stdlib_and_standard_tools_read_what_is_written() -> None:
    data = skewed(100_000)
    deflated, gzipped, zstd = (bytes(CODERS[n].encode(data, 1)) for n in CODERS)
    assert zlib.decompress(deflated, -15) == data
    assert gzip.decompress(gzipped) == data
    assert zstandard.ZstdDecompressor().stream_reader(io.BytesIO(zstd)).read() == data
    assert len(deflated) < len(data)


@pytest.mark.parametrize("name", CODERS)
@pytest.mark.parametrize("num_bytes", [1, 2, 100, 4095, 4096, 4097, 300_000])
@pytest.mark.parametrize("level", [1, 3])
def test_what_is_encoded_is_decoded(name: str, num_bytes: int, level: int) -> None:
    coder = CODERS[name]
    for data in (skewed(num_bytes), bytes(num_bytes)):
        encoded = bytes(coder.encode(data, level))
        if len(encoded) < len(data):
            assert coder.decode(encoded, len(data)) == data


def test_huffman_only_is_taken_where_it_is_smaller() -> None:
    data = skewed(262_144)
    fast = igzip_lib.compress(data, 1, igzip_lib.COMP_DEFLATE)
    assert len(CODERS["deflate"].encode(data, 1)) < 0.97 * len(fast)
    repeats = bytes(range(200)) * 1000
    assert len(CODERS["deflate"].encode(repeats, 1)) < 0.05 * len(repeats)


def test_noise_is_given_back_as_it_is() -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    assert CODERS["deflate"].encode(noise, 1) is noise
    assert CODERS["gzip"].encode(noise, 1) is noise
