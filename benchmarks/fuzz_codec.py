"""Coverage-guided fuzzing of the payload reader: nothing but `WireError` may come out of it.

    python benchmarks/fuzz_codec.py -max_total_time=300

Needs atheris beside fedot's own packages. The first byte of an input picks a chain and a way in:
bytes as they are; or bytes taken as sections, which are given a manifest, headers and checksums
that are right, so that the fuzzer gets past them to what lies behind.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import zlib
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["fedot.compression"]):
    from fedot.compression.chain import Chain, Step, plan
    from fedot.compression.codec import TensorSpec, decode, encode
    from fedot.compression.frames import FrameCodec
    from fedot.compression.manifest import write_manifest
from fedot.errors import WireError

SPEC = {
    "a": TensorSpec((7, 30), "float32"),
    "b": TensorSpec((9,), "bfloat16"),
    "c": TensorSpec((3, 0), "float16"),
    "d": TensorSpec((50,), "float16"),
}
NUM_VALUES = sum(one.num_values for one in SPEC.values())
CODERS: list[tuple[Step, ...]] = [
    (),
    (Step("deflate"),),
    (Step("gzip"),),
    (Step("zstd"),),
    (Step("planes"), Step("deflate")),
    (Step("planes"), Step("zstd")),
]
CHAINS = [
    plan(*sparse, value, *coder)
    for sparse in ((), (Step("top_k", {"keep_ratio": 0.05}),))
    for value in map(Step, ("float32", "bfloat16", "float16", "int8", "nf4"))
    for coder in CODERS
    if coder[:1] != (Step("planes"),) or value.name not in ("int8", "nf4")
]


def assembled(chain: Chain, data: bytes) -> bytes:
    """A payload whose manifest and checksums are right and whose sections are the fuzzer's."""
    provider = atheris.FuzzedDataProvider(data)
    sections = FrameCodec.of(chain).sections(NUM_VALUES)
    methods = [provider.ConsumeIntInRange(0, 1) for _ in sections]
    bodies = []
    for section, method in zip(sections, methods, strict=True):
        exact = section.most if method == 0 and provider.ConsumeIntInRange(0, 7) else None
        size = exact or provider.ConsumeIntInRange(0, section.most + 1)
        body = provider.ConsumeBytes(size)
        bodies.append(body.ljust(exact, b"\x3f") if exact else body)
    heads = (struct.pack("<BI", m, len(b)) for m, b in zip(methods, bodies, strict=True))
    rest = b"".join(heads) + b"".join(bodies)
    return write_manifest(chain, SPEC) + struct.pack("<I", zlib.crc32(rest)) + rest


def test_one_input(data: bytes) -> None:
    if not data:
        return
    chain = CHAINS[(data[0] >> 1) % len(CHAINS)]
    payload = assembled(chain, data[1:]) if data[0] & 1 else data[1:]
    try:
        tensors = decode(payload, SPEC, CHAINS, max_payload_bytes=1 << 20)
    except WireError:
        return
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        name: one.shape for name, one in SPEC.items()
    }
    for tensor in tensors.values():
        assert bool(tensor.isfinite().all())
        assert not tensor.numel() or float(tensor.abs().max()) <= 2.0**40


def seeds() -> list[bytes]:
    """An honest payload of every chain, for the way in that takes bytes as they are."""
    rng = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(one.shape, generator=rng).to(getattr(torch, one.dtype))
        for name, one in SPEC.items()
    }
    return [
        bytes([number << 1 & 0xFE]) + encode(tensors, chain).payload
        for number, chain in enumerate(CHAINS)
    ]


def main() -> None:
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-codec-"))
    for number, seed in enumerate(seeds()):
        test_one_input(seed)
        (corpus / str(number)).write_bytes(seed)
        # The same bytes as sections: the other way in.
        (corpus / f"sections-{number}").write_bytes(bytes([seed[0] | 1]) + seed[-600:])
    atheris.Setup([*sys.argv, str(corpus)], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
