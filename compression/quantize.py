"""Float32 values to scales and codes, and back, one frame at a time.

An operator that scales cuts a frame's values into blocks of `block` values (the last may be
shorter) and keeps one float32 scale for each. A scale lies in [2^-126, `MAX_SCALE`]: it is never
zero, so a block of zeros has the smallest scale and codes that mean zero.

int8's step is the block's largest value over 127, but no finer than `min_step` times the block's
root mean square. What Adam's steps add up to is close to uniform: all 255 codes are about equally
frequent, and DEFLATE can do nothing with them. With a least step the relative error is about
min_step / sqrt(12), 0.9 % by default, whatever the distribution, and DEFLATE takes away the bits
that this does not need. `min_step: 0` is plain absmax.

Design note: plain numpy. On a frame of 1 MiB every pass runs from the cache, so int8 takes about a
tenth of a millisecond, a third of what DEFLATE takes after it; there is nothing for a compiled
kernel to win. Blocks may span two tensors: a rule per tensor would cost ragged blocks everywhere
and changes nothing for tensors whose size is a multiple of the block, as LoRA's are.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedot.errors import WireError

__all__ = ["MAX_ABS", "MAX_SENT", "VALUES", "Values", "bfloat16_bits", "from_bfloat16_bits"]
__all__ += ["largest_size"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Params = Mapping[str, int | float | str]
Dither = Callable[[int], Floats]

MAX_ABS = 2.0**40
"""No value on the wire is larger: 2^40 of them still have a squared norm that float32 can hold."""

MAX_SENT = 2.0**39
"""No value is sent that is larger, so that rounding never carries one past `MAX_ABS`."""

_TINY = np.float32(2.0**-126)


@dataclass(frozen=True, slots=True)
class Values:
    """How values travel.

    Attributes:
        bits: of one code.
        max_scale: largest scale that keeps every decoded value within `MAX_ABS`; None where
            values are not scaled.
        pack: values, largest size of each block, parameters, dither -> scales, codes.
        unpack: scales, codes, parameters, values to write.
    """

    bits: int
    max_scale: float | None
    pack: Callable[[Floats, Floats, Params, Dither], tuple[Floats, Bytes]]
    unpack: Callable[[Floats, Bytes, Params, Floats], None]

    def num_scales(self, num_values: int, params: Params) -> int:
        """One for each block that is begun."""
        return 0 if self.max_scale is None else -(-num_values // int(params["block"]))

    def code_bytes(self, num_values: int) -> int:
        """Whole bytes for that many codes."""
        return (num_values * self.bits + 7) // 8

    def encode(self, values: Floats, params: Params, dither: Dither) -> tuple[Floats, Bytes]:
        """Scales and codes of values.

        Raises:
            OverflowError: a value is not finite or above `MAX_SENT`.
        """
        peaks = _peaks(values, int(params.get("block", values.size)))
        if not float(peaks.max()) <= MAX_SENT:
            raise OverflowError(f"values must be finite and at most {MAX_SENT:g} in size")
        return self.pack(values, peaks, params, dither)

    def decode(self, scales: Floats, codes: Bytes, params: Params, out: Floats) -> None:
        """Write the values of a peer's scales and codes to `out`.

        Raises:
            WireError: a scale or a value is not finite, or out of bounds.
        """
        if self.max_scale is not None and not bool(
            np.all((scales >= _TINY) & (scales <= self.max_scale))
        ):
            raise WireError(
                f"a scale is not within 2^-126 and {self.max_scale:g}; the frame is refused. "
                "The sender must send it anew."
            )
        self.unpack(scales, codes, params, out)


def largest_size(values: Floats) -> float:
    """Largest absolute value; NaN if there is one, 0 if there are none."""
    return float(_peaks(values, values.size).max()) if values.size else 0.0


def bfloat16_bits(values: Floats) -> npt.NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even; values must be bounded."""
    bits = values.view(np.uint32)
    carry = bits >> 16
    carry &= 1
    carry += 0x7FFF
    carry += bits
    carry >>= 16
    return _cast(carry, np.uint16)


def from_bfloat16_bits(bits: npt.NDArray[np.uint16], out: Floats) -> None:
    """Write the float32 values of bfloat16 bit patterns, exactly."""
    wide = out.view(np.uint32)
    wide[:] = bits
    wide <<= 16


def _cast(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """As `astype`, which holds the interpreter's lock all the while; assigning does not."""
    result = np.empty(values.shape, dtype=dtype)
    result[...] = values
    return result


_room = threading.local()


def _scratch(num_values: int) -> Floats:
    """This thread's own array, until its next call; a fresh one would be paged in every time."""
    room: Floats | None = getattr(_room, "floats", None)
    if room is None or room.size < num_values:
        room = _room.floats = np.empty(num_values, dtype=np.float32)
    return room[:num_values]


def _blocks(values: npt.NDArray[Any], scales: Floats, block: int) -> Iterator[tuple[Any, Floats]]:
    """Views of whole blocks (rows) and of the shorter last one, with their scales as a column."""
    whole = values.size // block
    if whole:
        yield values[: whole * block].reshape(whole, block), scales[:whole, None]
    if values.size % block:
        yield values[whole * block :].reshape(1, -1), scales[whole:, None]


def _peaks(values: Floats, block: int) -> Floats:
    """Largest size in each block.

    Without their sign bit, floats order as integers do (NaN above all), and numpy's maximum of
    integers is twice as fast.
    """
    peaks = np.empty(-(-values.size // block), dtype=np.float32)
    sizes = np.bitwise_and(
        values.view(np.int32), 0x7FFFFFFF, out=_scratch(values.size).view(np.int32)
    )
    for rows, out in _blocks(sizes, peaks, block):
        np.maximum.reduce(rows, axis=1, out=out[:, 0].view(np.int32))
    return peaks


def _rms(values: Floats, block: int) -> Floats:
    """Root mean square of each block."""
    result = np.empty(-(-values.size // block), dtype=np.float32)
    for rows, out in _blocks(values, result, block):
        out[:, 0] = np.sqrt(np.vecdot(rows, rows) / np.float32(rows.shape[1]))
    return result


def _divided(values: Floats, scales: Floats, block: int) -> Floats:
    result, inverse = _scratch(values.size), np.float32(1) / scales
    for (rows, factor), (out, _) in zip(
        _blocks(values, inverse, block), _blocks(result, inverse, block), strict=True
    ):
        np.multiply(rows, factor, out=out)
    return result


def _multiply(values: Floats, scales: Floats, block: int) -> None:
    for rows, factor in _blocks(values, scales, block):
        np.multiply(rows, factor, out=rows)


_NO_SCALES: Floats = np.empty(0, dtype=np.float32)


def _pack_float32(v: Floats, peaks: Floats, p: Params, dither: Dither) -> tuple[Floats, Bytes]:
    return _NO_SCALES, v.view(np.uint8)


def _unpack_float32(scales: Floats, codes: Bytes, params: Params, out: Floats) -> None:
    out[:] = codes.view(np.float32)
    _check_bounded(out)


def _pack_bfloat16(v: Floats, peaks: Floats, p: Params, dither: Dither) -> tuple[Floats, Bytes]:
    return _NO_SCALES, bfloat16_bits(v).view(np.uint8)


def _unpack_bfloat16(scales: Floats, codes: Bytes, params: Params, out: Floats) -> None:
    from_bfloat16_bits(codes.view(np.uint16), out)
    _check_bounded(out)


def _pack_float16(v: Floats, peaks: Floats, p: Params, dither: Dither) -> tuple[Floats, Bytes]:
    # A power of two that lifts the block's largest value to [2^14, 2^15): exact, and it keeps
    # small values out of the subnormals.
    exponents = np.frexp(peaks)[1] - 15
    scales = np.maximum(np.ldexp(np.float32(1), exponents), _TINY)
    return scales, _cast(_divided(v, scales, int(p["block"])), np.float16).view(np.uint8)


def _unpack_float16(scales: Floats, codes: Bytes, params: Params, out: Floats) -> None:
    out[:] = codes.view(np.float16)
    _multiply(out, scales, int(params["block"]))
    _check_bounded(out)


def _pack_int8(v: Floats, peaks: Floats, p: Params, dither: Dither) -> tuple[Floats, Bytes]:
    scales = np.maximum(peaks / np.float32(127), _TINY)
    if p["min_step"]:
        np.maximum(scales, np.float32(p["min_step"]) * _rms(v, int(p["block"])), out=scales)
    steps = _divided(v, scales, int(p["block"]))
    if p["rounding"] == "stochastic":
        # At most 127.00001 + 1 - 2^-16, for every float32 that a block's largest value can be.
        steps += dither(v.size)
        np.floor(steps, out=steps)
    else:
        np.rint(steps, out=steps)
    return scales, _cast(steps, np.int8).view(np.uint8)


def _unpack_int8(scales: Floats, codes: Bytes, params: Params, out: Floats) -> None:
    out[:] = codes.view(np.int8)
    _multiply(out, scales, int(params["block"]))


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


def _pack_nf4(v: Floats, peaks: Floats, p: Params, dither: Dither) -> tuple[Floats, Bytes]:
    codes, state = _bitsandbytes().quantize_4bit(
        torch.from_numpy(v.copy()),
        blocksize=int(p["block"]),
        compress_statistics=False,
        quant_type="nf4",
    )
    return np.maximum(state.absmax.numpy(), _TINY), codes.numpy().reshape(-1)


def _unpack_nf4(scales: Floats, codes: Bytes, params: Params, out: Floats) -> None:
    out[:] = _NF4_PAIRS[codes].reshape(-1)[: out.size]
    _multiply(out, scales, int(params["block"]))


def _check_bounded(values: Floats) -> None:
    if not largest_size(values) <= MAX_ABS:
        raise WireError(
            f"a value is not finite or above {MAX_ABS:g}; the frame is refused. "
            "The sender must leave such an update out."
        )


VALUES: Mapping[str, Values] = {
    "float32": Values(32, None, _pack_float32, _unpack_float32),
    "bfloat16": Values(16, None, _pack_bfloat16, _unpack_bfloat16),
    "float16": Values(16, 2.0**25, _pack_float16, _unpack_float16),
    "int8": Values(8, 2.0**33, _pack_int8, _unpack_int8),
    "nf4": Values(4, MAX_ABS, _pack_nf4, _unpack_nf4),
}
