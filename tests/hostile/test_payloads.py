"""Payloads made to do harm: every one of them meets a `WireError`, early and cheaply."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from fedot.compression.codec import Chain, Step, TensorSpec, decode, encode, plan, spec_of, text_of
from fedot.errors import WireError

N = 1000
SPEC = {"w": TensorSpec((N,), "float32")}
DEFLATED = plan(Step("int8"), Step("deflate"))
GZIPPED = plan(Step("int8"), Step("gzip"))
ZSTD = plan(Step("int8"), Step("zstd"))
STORED = plan(Step("int8"))
SPARSE = plan(Step("top_k", {"keep_ratio": 0.01}), Step("float32"))
SCALES = np.ones(4, dtype="<f4").tobytes()
CODES = bytes(N)

Section = tuple[int, bytes]


def rows(spec: dict[str, TensorSpec]) -> list[Any]:
    return [[name, spec[name].dtype, list(spec[name].shape)] for name in sorted(spec)]


def manifest(text: bytes, tensors: list[Any] | None = None, version: int = 1) -> bytes:
    spec = json.dumps(rows(SPEC) if tensors is None else tensors, separators=(",", ":"))
    head = struct.pack("<5sBH", b"fedot", version, len(text)) + sha256(spec.encode()).digest()
    return head + text + struct.pack("<I", zlib.crc32(head + text))


def frame(*sections: Section, lengths: Sequence[int] | None = None) -> bytes:
    """A frame whose CRC-32 is right, whatever else is wrong; `lengths` may lie."""
    sizes = lengths or [len(body) for _, body in sections]
    heads = (struct.pack("<BI", m, s) for (m, _), s in zip(sections, sizes, strict=True))
    rest = b"".join(heads) + b"".join(body for _, body in sections)
    return struct.pack("<I", zlib.crc32(rest)) + rest


def forged(chain: Chain, *sections: Section, lengths: Sequence[int] | None = None) -> bytes:
    return manifest(text_of(chain).encode()) + frame(*sections, lengths=lengths)


def refuse(payload: bytes, chain: Chain, reason: str, spec: dict[str, TensorSpec] = SPEC) -> None:
    with pytest.raises(WireError, match=reason):
        decode(payload, spec, [chain])


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def gzip_of(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    return stream.compress(data) + stream.flush()


def zstd_of(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


CODERS = pytest.mark.parametrize(
    ("chain", "pack"), [(DEFLATED, raw_deflate), (GZIPPED, gzip_of), (ZSTD, zstd_of)]
)


def test_the_forger_can_forge_what_is_accepted() -> None:
    decode(forged(STORED, (0, SCALES), (0, CODES)), SPEC, [STORED])
    for chain, pack in ((DEFLATED, raw_deflate), (GZIPPED, gzip_of), (ZSTD, zstd_of)):
        decode(forged(chain, (0, SCALES), (1, pack(CODES))), SPEC, [chain])
    decode(forged(SPARSE, (0, bytes(10)), (0, bytes(40))), SPEC, [SPARSE])


@CODERS
def test_a_bomb_is_refused_without_the_memory_it_claims(chain: Chain, pack: Any) -> None:
    spec = {"w": TensorSpec((262_144,), "float32")}
    bomb = pack(bytes(200 << 20))
    assert len(bomb) < 262_144
    payload = manifest(text_of(chain).encode(), rows(spec))
    payload += frame((0, np.ones(1024, dtype="<f4").tobytes()), (1, bomb))
    tracemalloc.start()
    refuse(payload, chain, "unpacks to more|claims", spec)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_zstd_stream_that_hides_its_size_or_asks_for_a_huge_window_is_refused() -> None:
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(CODES)
    refuse(forged(ZSTD, (0, SCALES), (1, hidden)), ZSTD, "claims")
    # Magic, a descriptor for an 8-byte content size, a window, the size, N times a zero byte.
    for log in (24, 31):
        window = b"\x28\xb5\x2f\xfd\xc0" + bytes([(log - 10) << 3]) + struct.pack("<Q", N)
        stream = window + struct.pack("<I", N << 3 | 0b011)
        refuse(forged(ZSTD, (0, SCALES), (1, stream)), ZSTD, "a window of|not valid zstd")


@CODERS
def test_a_cut_off_stream_is_refused(chain: Chain, pack: Any) -> None:
    noise = np.random.default_rng(0).integers(-3, 4, N).astype(np.int8).tobytes()
    whole = pack(noise)
    for length in (1, 5, len(whole) // 2, len(whole) - 1):
        refuse(forged(chain, (0, SCALES), (1, whole[:length])), chain, "cut off|not valid|claims")


@CODERS
def test_bytes_after_a_stream_are_refused(chain: Chain, pack: Any) -> None:
    for more in (b"\0", pack(b"more")):
        refuse(forged(chain, (0, SCALES), (1, pack(CODES) + more)), chain, "followed|not valid")


@CODERS
def test_a_stream_of_fewer_bytes_than_the_section_has_is_refused(chain: Chain, pack: Any) -> None:
    refuse(forged(chain, (0, SCALES), (1, pack(CODES[1:]))), chain, "unpacks to 999 bytes")
    refuse(forged(chain, (0, SCALES), (1, pack(b""))), chain, "unpacks to 0 bytes|claims 0")


@CODERS
def test_noise_in_place_of_a_stream_is_refused(chain: Chain, pack: Any) -> None:
    rng = np.random.default_rng(1)
    for length in (1, 2, 20, 500):
        refuse(forged(chain, (0, SCALES), (1, rng.bytes(length))), chain, ".")


@pytest.mark.parametrize("chain", [STORED, DEFLATED, SPARSE], ids=text_of)
def test_a_payload_cut_off_anywhere_is_refused(chain: Chain) -> None:
    payload = encode({"w": torch.arange(N).float()}, chain).payload
    for length in range(len(payload)):
        refuse(payload[:length], chain, "cut off")


def test_bytes_after_the_last_frame_are_refused() -> None:
    payload = encode({"w": torch.arange(N).float()}, STORED).payload
    for more in (b"\0", payload, frame((0, SCALES), (0, CODES))):
        refuse(payload + more, STORED, "follow")


def test_every_single_flipped_bit_is_noticed() -> None:
    payload = encode({"w": torch.arange(N).float()}, DEFLATED).payload
    for place in range(len(payload)):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << (place % 8)
        refuse(bytes(damaged), DEFLATED, ".")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38, -1e30, 2.0**41])
@pytest.mark.parametrize("operator", ["float32", "bfloat16"])
def test_values_not_finite_or_with_a_squared_norm_beyond_float32_are_refused(
    operator: str, bad: float
) -> None:
    values = np.zeros(N, dtype="<f4")
    values[7] = bad
    body = values.tobytes() if operator == "float32" else values.view("<u2")[1::2].tobytes()
    chain = plan(Step(operator))
    refuse(forged(chain, (0, body)), chain, "a value is not finite or above")


def test_the_largest_values_let_through_have_a_finite_squared_norm() -> None:
    chain, spec = plan(Step("float32")), {"w": TensorSpec((N,), "float32")}
    received = decode(forged(chain, (0, np.full(N, 2.0**40, dtype="<f4").tobytes())), spec, [chain])
    assert bool(received["w"].square().sum().isfinite())
    # 2^40 values, the most that the format carries, of 2^40 each: still below float32's largest.
    assert torch.finfo(torch.float32).max > 2.0**40 * (2.0**40) ** 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_float16_codes_that_are_not_finite_are_refused(bad: float) -> None:
    codes, chain = np.zeros(N, dtype="<f2"), plan(Step("float16"))
    codes[3] = bad
    refuse(forged(chain, (0, SCALES), (0, codes.tobytes())), chain, "a value is not finite")


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -1.0, 1e-40, 3e38, 2.0**41]
)
@pytest.mark.parametrize("operator", ["int8", "float16", "nf4"])
def test_scales_not_finite_zero_negative_subnormal_or_huge_are_refused(
    operator: str, bad: float
) -> None:
    chain = plan(Step(operator, {"block": 256}))
    scales = np.ones(4, dtype="<f4")
    scales[2] = bad
    codes = bytes({"int8": N, "float16": 2 * N, "nf4": N // 2}[operator])
    refuse(forged(chain, (0, scales.tobytes()), (0, codes)), chain, "a scale is not within")


def test_values_too_large_for_the_dtype_that_is_expected_are_refused() -> None:
    spec, chain = {"w": TensorSpec((N,), "float16")}, plan(Step("float32"))
    payload = manifest(b"float32", rows(spec))
    refuse(payload + frame((0, np.full(N, 1e5, dtype="<f4").tobytes())), chain, "float16", spec)


@pytest.mark.parametrize(
    "tensors",
    [
        [["v", "float32", [N]]],
        [["v", "float32", [N]], ["w", "float32", [N]]],
        [],
        [["w", "float32", [N]], ["w", "float32", [N]]],
        [["w", "float32", [N + 1]]],
        [["w", "float32", [10, 100]]],
        [["w", "float32", [N, 1]]],
        [["w", "bfloat16", [N]]],
        [["w", "float32", [2**62, 4, N]]],
        [["w", "float32", [-N]]],
    ],
    ids=[
        "unknown",
        "more",
        "missing",
        "duplicate",
        "longer",
        "shape",
        "rank",
        "dtype",
        "overflow",
        "negative",
    ],
)
def test_other_tensors_than_those_expected_are_refused(tensors: list[Any]) -> None:
    payload = manifest(text_of(STORED).encode(), tensors) + frame((0, SCALES), (0, CODES))
    refuse(payload, STORED, "other tensors")


def test_a_wrong_magic_or_version_is_refused() -> None:
    good = encode({"w": torch.zeros(N)}, STORED).payload
    refuse(b"PK\3\4" + good[4:], STORED, "not a fedot payload")
    refuse(b"\x80\4\x95" + good[3:], STORED, "not a fedot payload")
    for version in (0, 2, 255):
        refuse(manifest(text_of(STORED).encode(), version=version), STORED, "format version")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"int8",
        b"int4",
        b"pickle",
        b"int8(block=256,min_step=0.0,rounding=nearest)+int8(block=256,min_step=0.0,rounding=nearest)",
        b"int8(block=0,min_step=0.0,rounding=nearest)",
        b"int8(rounding=nearest,min_step=0.0,block=256)",
        b"INT8(block=256,min_step=0.0,rounding=nearest)",
        b"float32",
        b"(" * 200,
        b'[{"a":' * 40,
        b"\xff\0\xfe",
    ],
)
def test_a_chain_that_is_not_allowed_word_for_word_is_refused(text: bytes) -> None:
    refuse(manifest(text) + frame((0, SCALES), (0, CODES)), STORED, "not one that is allowed")


def test_nothing_is_accepted_where_no_chain_is_allowed() -> None:
    with pytest.raises(WireError, match="allowed here: none"):
        decode(forged(STORED, (0, SCALES), (0, CODES)), SPEC, [])


def test_a_manifest_over_its_cap_is_refused_before_it_is_read() -> None:
    for claimed in (257, 65_535):
        refuse(struct.pack("<5sBH32s", b"fedot", 1, claimed, bytes(32)), STORED, "is the cap")


@pytest.mark.parametrize("lie", [0, 1, 999, 1001, 2**31, 2**32 - 1])
def test_a_section_with_a_length_it_cannot_have_is_refused_before_it_is_read(lie: int) -> None:
    refuse(forged(STORED, (0, SCALES), (0, CODES), lengths=[16, lie]), STORED, "must have 1000")


def test_a_section_with_a_method_it_cannot_have_is_refused() -> None:
    refuse(forged(STORED, (0, SCALES), (1, raw_deflate(CODES))), STORED, "has method 1")
    refuse(forged(DEFLATED, (0, SCALES), (2, raw_deflate(CODES))), DEFLATED, "has method 2")
    refuse(forged(DEFLATED, (0, SCALES), (1, CODES)), DEFLATED, "has method 1 and 1000 bytes")


@pytest.mark.parametrize(
    "gaps",
    [
        bytes([0] * 9),
        bytes([0] * 11),
        bytes([255] * 12),
        bytes([0] * 10 + [255]),
        bytes([0] * 9 + [255]),
        bytes([100] * 10),
        bytes([255] * 3 + [226] + [0] * 9),
    ],
    ids=["few", "many", "only long", "open end", "open last", "outside", "last outside"],
)
def test_gaps_that_do_not_name_k_values_of_the_frame_are_refused(gaps: bytes) -> None:
    refuse(forged(SPARSE, (0, gaps), (0, bytes(40))), SPARSE, "do not name|must have 10")


def test_gaps_may_reach_the_last_value_of_the_frame() -> None:
    gaps = bytes([255] * 3 + [225] + [0] * 9)
    values = np.arange(10, dtype="<f4")
    received = decode(forged(SPARSE, (0, gaps), (0, values.tobytes())), SPEC, [SPARSE])
    assert received["w"][-10:].tolist() == values.tolist()


def test_an_error_in_any_frame_of_many_is_raised_whatever_the_number_of_workers() -> None:
    tensors = {"w": torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))}
    payload = bytearray(encode(tensors, STORED).payload)
    for place in (len(payload) // 9, len(payload) // 2, len(payload) - 1):
        damaged = bytearray(payload)
        damaged[place] ^= 1
        for workers in (1, 2, 8):
            with pytest.raises(WireError, match="CRC-32"):
                decode(bytes(damaged), spec_of(tensors), [STORED], workers=workers)
