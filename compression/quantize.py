"""Float32 values to scales and codes, and back, one frame at a time.

An operator that scales cuts a frame's values into blocks of `block` values (the last may be
shorter) and keeps one float32 scale for each. A scale lies in [2^-126, `MAX_SCALE`]: it is never
zero, so a block of zeros has the smallest scale and codes that mean zero.

Design note: plain numpy. On a frame of 1 MiB every pass runs from the cache, so int8 takes about a
tenth of a millisecond, a third of what DEFLATE takes after it; there is nothing for a compiled
kernel to win. Blocks may span two tensors: a rule per tensor would cost ragged blocks everywhere
and changes nothing for tensors whose size is a multiple of the block, as LoRA's are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedot.errors import WireError

__all__ = ["MAX_ABS", "VALUES", "Values", "bfloat16_bits", "check_bounded", "from_bfloat16_bits"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Params = Mapping[str, int | float | str]

MAX_ABS = 2.0**40
"""No value on the wire is larger: 2^40 of them still have a squared norm that float32 can hold."""

_TINY = np.float32(2.0**-126)


@dataclass(frozen=True, slots=True)
class Values:
    """How values travel.

    Attributes:
        bits: of one code.
        scaled: whether a float32 scale per block goes with the codes.
        max_scale: largest scale that keeps every decoded value within `MAX_ABS`.
        pack: values, parameters, dither -> scales, codes.
        unpack: scales, codes, number of values, parameters -> values.
    """

    bits: int
    scaled: bool
    max_scale: float
    pack: Callable[[Floats, Params, Callable[[int], Floats]], tuple[Floats, Bytes]]
    unpack: Callable[[Floats, Bytes, int, Params], Floats]

    def num_scales(self, num_values: int, params: Params) -> int:
        """One for each block that is begun."""
        return -(-num_values // int(params["block"])) if self.scaled else 0

    def code_bytes(self, num_values: int) -> int:
        """Whole bytes for that many codes."""
        return (num_values * self.bits + 7) // 8

    def decode(self, scales: Floats, codes: Bytes, num_values: int, params: Params) -> Floats:
        """Values from a peer's scales and codes.

        Raises:
            WireError: a scale or a value is not finite, or out of bounds.
        """
        if self.scaled and not bool(np.all((scales >= _TINY) & (scales <= self.max_scale))):
            raise WireError(
                f"a scale is not within 2^-126 and {self.max_scale:g}; the frame is refused. "
                "The sender must send it anew."
            )
        return self.unpack(scales, codes, num_values, params)


def check_bounded(values: Floats) -> bool:
    """Whether all values are finite and at most `MAX_ABS` in size."""
    return values.size == 0 or bool(np.abs(values).max() <= MAX_ABS)


def bfloat16_bits(values: Floats) -> npt.NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even; values must be bounded."""
    bits = values.view(np.uint32)
    carry = bits >> 16
    carry &= 1
    carry += 0x7FFF
    carry += bits
    carry >>= 16
    return carry.astype(np.uint16)


def from_bfloat16_bits(bits: npt.NDArray[np.uint16]) -> Floats:
    """The float32 values of bfloat16 bit patterns, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _blocks(values: npt.NDArray[Any], scales: Floats, block: int) -> Iterator[tuple[Any, Floats]]:
    """Views of whole blocks (rows) and of the shorter last one, with their scales as a column."""
    whole = values.size // block
    if whole:
        yield values[: whole * block].reshape(whole, block), scales[:whole, None]
    if values.size % block:
        yield values[whole * block :].reshape(1, -1), scales[whole:, None]


def _absmax(values: Floats, block: int) -> Floats:
    peaks = np.empty(-(-values.size // block), dtype=np.float32)
    for rows, out in _blocks(np.abs(values), peaks, block):
        np.maximum.reduce(rows, axis=1, out=out[:, 0])
    return peaks


def _divided(values: Floats, scales: Floats, block: int) -> Floats:
    result = np.empty_like(values)
    inverse = np.float32(1) / scales
    for (rows, factor), (out, _) in zip(
        _blocks(values, inverse, block), _blocks(result, inverse, block), strict=True
    ):
        np.multiply(rows, factor, out=out)
    return result


def _multiplied(values: Floats, scales: Floats, block: int) -> Floats:
    for rows, factor in _blocks(values, scales, block):
        np.multiply(rows, factor, out=rows)
    return values


_NO_SCALES: Floats = np.empty(0, dtype=np.float32)


def _pack_float32(values: Floats, params: Params, dither: Any) -> tuple[Floats, Bytes]:
    return _NO_SCALES, values.view(np.uint8)


def _unpack_float32(scales: Floats, codes: Bytes, num_values: int, params: Params) -> Floats:
    return _bounded(codes.view(np.float32))


def _pack_bfloat16(values: Floats, params: Params, dither: Any) -> tuple[Floats, Bytes]:
    return _NO_SCALES, bfloat16_bits(values).view(np.uint8)


def _unpack_bfloat16(scales: Floats, codes: Bytes, num_values: int, params: Params) -> Floats:
    return _bounded(from_bfloat16_bits(codes.view(np.uint16)))


def _pack_float16(values: Floats, params: Params, dither: Any) -> tuple[Floats, Bytes]:
    block = int(params["block"])
    # A power of two that lifts the block's largest value to [2^14, 2^15): exact, and it keeps
    # small values out of the subnormals.
    exponents = np.frexp(_absmax(values, block))[1] - 15
    scales = np.maximum(np.ldexp(np.float32(1), exponents), _TINY)
    return scales, _divided(values, scales, block).astype(np.float16).view(np.uint8)


def _unpack_float16(scales: Floats, codes: Bytes, num_values: int, params: Params) -> Floats:
    values = codes.view(np.float16).astype(np.float32)
    return _bounded(_multiplied(values, scales, int(params["block"])))


def _pack_int8(
    values: Floats, params: Params, dither: Callable[[int], Floats]
) -> tuple[Floats, Bytes]:
    block = int(params["block"])
    scales = np.maximum(_absmax(values, block) / np.float32(127), _TINY)
    steps = _divided(values, scales, block)
    if params["rounding"] == "stochastic":
        steps += dither(values.size)
        np.floor(steps, out=steps)
        np.clip(steps, -127, 127, out=steps)
    else:
        np.rint(steps, out=steps)
    return scales, steps.astype(np.int8).view(np.uint8)


def _unpack_int8(scales: Floats, codes: Bytes, num_values: int, params: Params) -> Floats:
    return _multiplied(codes.view(np.int8).astype(np.float32), scales, int(params["block"]))


# The sixteen values of NF4: Dettmers et al. 2023, arXiv:2305.14314, appendix E.
_NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)
_NF4_PAIRS = np.stack([np.repeat(_NF4, 16), np.tile(_NF4, 16)], axis=1)


@functools.cache
def _bitsandbytes() -> Any:
    """Imported on first use: it takes seconds."""
    import bitsandbytes.functional

    return bitsandbytes.functional


def _pack_nf4(values: Floats, params: Params, dither: Any) -> tuple[Floats, Bytes]:
    codes, state = _bitsandbytes().quantize_4bit(
        torch.from_numpy(values.copy()),
        blocksize=int(params["block"]),
        compress_statistics=False,
        quant_type="nf4",
    )
    return np.maximum(state.absmax.numpy(), _TINY), codes.numpy().reshape(-1)


def _unpack_nf4(scales: Floats, codes: Bytes, num_values: int, params: Params) -> Floats:
    values = _NF4_PAIRS[codes].reshape(-1)[:num_values]
    return _multiplied(values, scales, int(params["block"]))


def _bounded(values: Floats) -> Floats:
    if not check_bounded(values):
        raise WireError(
            f"a value is not finite or above {MAX_ABS:g}; the frame is refused. "
            "The sender must leave such an update out."
        )
    return values


VALUES: Mapping[str, Values] = {
    "float32": Values(32, False, 0.0, _pack_float32, _unpack_float32),
    "bfloat16": Values(16, False, 0.0, _pack_bfloat16, _unpack_bfloat16),
    "float16": Values(16, True, 2.0**24, _pack_float16, _unpack_float16),
    "int8": Values(8, True, 2.0**33, _pack_int8, _unpack_int8),
    "nf4": Values(4, True, MAX_ABS, _pack_nf4, _unpack_nf4),
}
