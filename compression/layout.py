"""Where each tensor's values lie in the one long vector that frames are cut from."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedot.compression.frames import FRAME_VALUES
from fedot.compression.manifest import TensorSpec, num_values
from fedot.compression.quantize import MAX_SENT, bfloat16_bits, from_bfloat16_bits, largest_size
from fedot.errors import WireError

__all__ = ["DTYPES", "InMemory", "Layout", "cast_into", "empty_tensor"]

Floats = npt.NDArray[np.float32]

_HUGE_PAGE = 2**21
_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Layout:
    """Tensors laid end to end in the order of their names."""

    def __init__(self, spec: Mapping[str, TensorSpec]) -> None:
        self.names = sorted(spec)
        self.total = num_values(spec)
        self._starts = list(accumulate((spec[n].num_values for n in self.names), initial=0))

    def frames(self) -> Iterator[tuple[int, int]]:
        """First value and end of each frame."""
        for start in range(0, self.total, FRAME_VALUES):
            yield start, min(start + FRAME_VALUES, self.total)

    def gather(self, flat: Mapping[str, Tensor], start: int, end: int) -> Floats:
        """A frame's values as float32; a view where they lie in one float32 tensor."""
        pieces = [_values(flat[name][part]) for name, part, _ in self.pieces(start, end)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def first_unsendable(self, flat: Mapping[str, Tensor], start: int, end: int) -> str:
        """The tensor to blame for a frame that may not be sent."""
        return next(
            name
            for name, part, _ in self.pieces(start, end)
            if not largest_size(_values(flat[name][part])) <= MAX_SENT
        )

    def pieces(self, start: int, end: int) -> Iterator[tuple[str, slice, slice]]:
        """Tensor, part of it, part of the frame: for every tensor that the frame touches."""
        number, first = bisect_right(self._starts, start) - 1, start
        while start < end:
            begin, stop = self._starts[number], min(end, self._starts[number + 1])
            if start < stop:
                within = slice(start - first, stop - first)
                yield self.names[number], slice(start - begin, stop - begin), within
                start = stop
            number += 1


def _values(part: Tensor) -> Floats:
    part = part.cpu()
    if part.dtype != torch.bfloat16:
        return part.numpy().astype(np.float32, copy=False)
    result = np.empty(part.numel(), dtype=np.float32)
    from_bfloat16_bits(part.view(torch.uint16).numpy(), result)
    return result


class InMemory:
    """Tensors to be filled frame by frame, each given as one contiguous vector."""

    def __init__(self, layout: Layout, flat: Mapping[str, Tensor]) -> None:
        self._layout, self._flat = layout, flat

    def window(self, start: int, end: int) -> Floats:
        """Where to write a frame's values: in the tensor itself, if it is one of float32."""
        name, part, within = next(self._layout.pieces(start, end))
        if within.stop == end - start and self._flat[name].dtype == torch.float32:
            return self._flat[name][part].numpy()
        return np.empty(end - start, dtype=np.float32)

    def place(self, window: Floats, start: int, end: int) -> None:
        """Copy a window's values where they belong, unless it lies there."""
        for name, part, within in self._layout.pieces(start, end):
            cast_into(self._flat[name][part], window[within], name)


def cast_into(part: Tensor, values: Floats, name: str) -> None:
    """Write values to a vector in its own dtype.

    Raises:
        WireError: a value does not fit into it.
    """
    if part.dtype == torch.bfloat16:
        part.view(torch.uint16).numpy()[:] = bfloat16_bits(values)
        return
    target = part.numpy()
    if part.dtype == torch.float32 and np.may_share_memory(target, values):
        return
    with np.errstate(over="ignore"):
        target[:] = values
    if part.dtype == torch.float16 and not np.isfinite(target).all():
        raise WireError(
            f"a value for {name!r} is too large for float16, the dtype that is expected of it. "
            "The sender must leave such an update out."
        )


def empty_tensor(spec: TensorSpec) -> Tensor:
    """A tensor of memory that nobody has touched yet, in huge pages where it is large.

    The system hands out memory 4 kB at a time when it is first written, which takes as long as
    decoding into it; asked for pages of 2 MB, it takes a tenth.
    """
    dtype, num_bytes = DTYPES[spec.dtype], spec.num_values * DTYPES[spec.dtype].itemsize
    if num_bytes < 2 * _HUGE_PAGE or _HUGEPAGE is None:
        return torch.empty(spec.shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(_HUGEPAGE)
    whole = np.frombuffer(memory, dtype=np.uint8)
    first = -whole.ctypes.data % _HUGE_PAGE
    return torch.from_numpy(whole[first : first + num_bytes]).view(dtype).view(spec.shape)
