"""Tensors to bytes and back: the public face of `fedot.compression`.

    chain = plan(Step("int8", {"block": 256}), Step("deflate"))
    sent = encode(update, chain)
    update = decode(sent.payload, expected=spec_of(update), allowed=[chain])

`decode` trusts no byte: the receiver says which tensors it expects and which chains it allows, and
anything else is a `WireError`. The format is specified in docs/wire-format.md.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedot.compression.chain import Chain, Step, plan, text_of
from fedot.compression.files import decode_to_file, encode_file, spec_of_file
from fedot.compression.layout import DTYPES, InMemory, empty_tensor
from fedot.compression.manifest import TensorSpec
from fedot.compression.stream import IncomingPayload, Readable, Writable, write_payload

__all__ = [
    "Chain",
    "Encoded",
    "Step",
    "TensorSpec",
    "decode",
    "decode_from",
    "decode_to_file",
    "encode",
    "encode_file",
    "encode_to",
    "encode_with_feedback",
    "plan",
    "spec_of",
    "spec_of_file",
    "text_of",
]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A payload and how it came to its size.

    Attributes:
        payload: manifest and frames.
        bytes_after: `float32` (the same tensors as plain float32), then each operator of the chain
            by its name, then `payload`: the whole, with manifest and frame headers.
    """

    payload: bytes = field(repr=False)
    bytes_after: dict[str, int]


def spec_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """Names, shapes and dtypes of tensors.

    Raises:
        ValueError: a dtype is not float32, bfloat16 or float16.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(
                f"{name!r} has dtype {tensor.dtype}; it must be one of {', '.join(DTYPES)}"
            )
    return {n: TensorSpec(tuple(t.shape), _NAMES[t.dtype]) for n, t in tensors.items()}


def encode(
    tensors: Mapping[str, Tensor],
    chain: Chain,
    *,
    seed: int | None = None,
    workers: int | None = None,
) -> Encoded:
    """Encode tensors; the same tensors, chain and seed give the same bytes.

    Args:
        tensors: by name, of any shape, on any device.
        chain: as `plan` made it.
        seed: needed by a chain that rounds stochastically; used for nothing else.
        workers: threads, or None for one per core up to eight; changes no byte.

    Raises:
        ValueError: a value is not finite or above 2^39, or the dtype or the seed does not do.
        ConfigError: the chain cannot be planned.
    """
    out = io.BytesIO()
    bytes_after = encode_to(out, tensors, chain, seed=seed, workers=workers)
    return Encoded(out.getvalue(), bytes_after)


def encode_to(
    out: Writable,
    tensors: Mapping[str, Tensor],
    chain: Chain,
    *,
    seed: int | None = None,
    workers: int | None = None,
) -> dict[str, int]:
    """Encode like `encode`, but write the payload to `out` as it is made.

    Returns:
        Bytes after each operator, as in `Encoded`.
    """
    flat = {name: tensor.detach().reshape(-1).contiguous() for name, tensor in tensors.items()}
    return write_payload(flat, spec_of(tensors), plan(*chain), out, seed=seed, workers=workers)


def decode(
    payload: bytes,
    expected: Mapping[str, TensorSpec],
    allowed: Collection[Chain],
    *,
    max_payload_bytes: int | None = None,
    workers: int | None = None,
) -> dict[str, Tensor]:
    """Check a payload and make its tensors: contiguous, on the CPU, in the expected dtypes.

    Args:
        payload: bytes from a peer.
        expected: names, shapes and dtypes that it must hold, no more and no less.
        allowed: chains that the receiver's policy accepts.
        max_payload_bytes: refuse a longer payload; without it the expected tensors set the limit.
        workers: threads, or None for one per core up to eight.

    Guarantees:
        Every value is finite and at most 2^40 in size. Nothing is allocated by a claim of the peer.

    Raises:
        WireError: anything in the bytes is not as it must be.
    """
    return decode_from(
        io.BytesIO(payload),
        expected,
        allowed,
        max_payload_bytes=max_payload_bytes,
        workers=workers,
    )


def decode_from(
    source: Readable,
    expected: Mapping[str, TensorSpec],
    allowed: Collection[Chain],
    *,
    max_payload_bytes: int | None = None,
    workers: int | None = None,
) -> dict[str, Tensor]:
    """Decode like `decode`, from a readable that ends where the payload ends."""
    payload = IncomingPayload(source, expected, allowed, max_payload_bytes=max_payload_bytes)
    tensors = {name: empty_tensor(spec) for name, spec in expected.items()}
    flat = {name: tensor.view(-1) for name, tensor in tensors.items()}
    payload.read_into(InMemory(payload.layout, flat), workers=workers)
    return tensors


def encode_with_feedback(
    tensors: Mapping[str, Tensor],
    residual: Mapping[str, Tensor] | None,
    chain: Chain,
    *,
    seed: int | None = None,
    workers: int | None = None,
) -> tuple[Encoded, dict[str, Tensor]]:
    """Encode `tensors + residual` and return what the chain lost as the next residual.

    What sparsifying and rounding take from one round is added to the next, so over the rounds
    nothing is lost. The residual is the caller's to keep, durably: it is made of the tensors alone,
    so after DP-SGD it is post-processing and costs no privacy, but a residual that leaves its owner
    is a release like the update itself.

    Args:
        tensors: this round's update, float32.
        residual: what the last call returned; None in the first round.
        chain: as `plan` made it.
        seed: for stochastic rounding.
        workers: threads, or None for one per core up to eight.

    Returns:
        The encoded sum, and the sum minus what a receiver decodes.

    Source: Karimireddy et al. 2019, arXiv:1901.09847.
    """
    spec = spec_of(tensors)
    if any(one.dtype != "float32" for one in spec.values()):
        raise ValueError("feedback needs float32 tensors: a coarser residual would lose its use")
    if residual is not None and spec_of(residual) != spec:
        raise ValueError("the residual has other names, shapes or dtypes than the tensors")
    total = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    if residual is not None:
        total = {name: total[name] + residual[name] for name in total}
    sent = encode(total, chain, seed=seed, workers=workers)
    received = decode(sent.payload, spec, [chain], workers=workers)
    return sent, {name: total[name] - received[name] for name in total}
