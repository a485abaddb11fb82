"""A second reader of payloads, made from docs/wire-format.md alone; it shares no code with fedot.

It takes honest payloads only: what must be refused is the business of the first reader.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zlib

import zstandard

Chain = dict[str, dict[str, str]]

NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def read(payload: bytes, spec: dict[str, tuple[str, list[int]]]) -> dict[str, list[float]]:
    """Values of each tensor, in row-major order."""
    magic, version, text_length, digest = struct.unpack_from("<5sBH32s", payload)
    end = 40 + text_length
    assert (magic, version) == (b"fedot", 1)
    assert zlib.crc32(payload[:end]) == struct.unpack_from("<I", payload, end)[0]
    rows = [[name, *spec[name]] for name in sorted(spec)]
    text = json.dumps(rows, separators=(",", ":"))
    assert digest == hashlib.sha256(text.encode()).digest()
    chain = steps(payload[40:end].decode())
    counts = [math.prod(spec[name][1]) for name in sorted(spec)]
    values: list[float] = []
    at = end + 4
    while len(values) < sum(counts):
        n = min(262_144, sum(counts) - len(values))
        more, at = frame(payload, at, n, chain)
        values += more
    assert at == len(payload)
    left = iter(values)
    return {n: [next(left) for _ in range(c)] for n, c in zip(sorted(spec), counts, strict=True)}


def steps(text: str) -> Chain:
    found = re.findall(r"(\w+)(?:\(([^)]*)\))?", text)
    return {n: dict(p.split("=") for p in inside.split(",") if p) for n, inside in found}


def frame(payload: bytes, at: int, n: int, chain: Chain) -> tuple[list[float], int]:
    operator = next(name for name in chain if name in (*WIDTH, "nf4"))
    planes = WIDTH[operator] if "planes" in chain else 0
    num_sections = ("top_k" in chain) + ("block" in chain[operator]) + (planes or 1)
    start, sections = at, []
    at += 4 + 5 * num_sections
    for number in range(num_sections):
        method, length = struct.unpack_from("<BI", payload, start + 4 + 5 * number)
        body = payload[at : at + length]
        sections.append(unpacked(body, chain) if method else body)
        at += length
    assert zlib.crc32(payload[start + 4 : at]) == struct.unpack_from("<I", payload, start)[0]
    positions = list(range(n))
    if "top_k" in chain:
        k = max(1, math.floor(float(chain["top_k"]["keep_ratio"]) * n + 0.5))
        positions, here = [], 0
        for gap in sections.pop(0):
            here += gap
            if gap < 255:
                positions.append(here)
                here += 1
        assert len(positions) == k
    scales = [1.0] * len(positions)
    if "block" in chain[operator]:
        block, raw = int(chain[operator]["block"]), sections.pop(0)
        scales = [s for (s,) in struct.iter_unpack("<f", raw) for _ in range(block)]
    body = bytes(b for code in zip(*sections, strict=True) for b in code) if planes else sections[0]
    values = [0.0] * n
    for position, code, scale in zip(positions, codes(operator, body), scales, strict=False):
        values[position] = struct.unpack("<f", struct.pack("<f", code * scale))[0]
    return values, at


def unpacked(body: bytes, chain: Chain) -> bytes:
    if "zstd" in chain:
        return zstandard.ZstdDecompressor().decompress(body)
    return zlib.decompress(body, -15 if "deflate" in chain else 31)


def codes(operator: str, body: bytes) -> list[float]:
    if operator == "nf4":
        return [NF4[index] for byte in body for index in (byte >> 4, byte & 15)]
    if operator == "bfloat16":
        body = b"".join(b"\0\0" + body[i : i + 2] for i in range(0, len(body), 2))
    layout = {"float32": "<f", "bfloat16": "<f", "float16": "<e", "int8": "<b"}[operator]
    return [value for (value,) in struct.iter_unpack(layout, body)]
