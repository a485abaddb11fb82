"""Top-k: the largest values of a frame and where they stand.

Positions travel as gaps, one byte each: how many values are skipped since the last kept one. A gap
of 255 or more is written as bytes of 255, each standing for 255 skipped values, and a last byte
below 255. After an entropy coder gaps need less than a bitmap at every keep ratio.

Design note: the k of a frame follows from its length and the keep ratio, so nothing about it is
claimed on the wire. An update of up to one frame, 262,144 values, has its exact global top-k; a
larger one has the top-k of each frame, which needs no second pass over the tensors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedot.errors import WireError

__all__ = ["gaps_of", "indices_of", "largest", "max_gap_bytes", "num_kept"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

_LONG = 255


def num_kept(num_values: int, keep_ratio: float) -> int:
    """K = floor(keep_ratio * n + 1/2), at least 1, in float64 on both sides of the wire."""
    return max(1, int(keep_ratio * num_values + 0.5))


def largest(values: Floats, k: int) -> Indices:
    """Positions of the k values largest in size, ascending; of equal ones the first are kept."""
    size = values.view(np.int32) & 0x7FFFFFFF
    threshold = np.partition(size, size.size - k)[size.size - k]
    kept = np.flatnonzero(size >= threshold)
    if kept.size > k:
        tied = np.flatnonzero(size[kept] == threshold)
        kept = np.delete(kept, tied[k - kept.size :])
    return kept


def max_gap_bytes(num_values: int, k: int) -> int:
    """The longest that the gaps of k positions among that many values can be."""
    return k + (num_values - k) // _LONG


def gaps_of(indices: Indices) -> Bytes:
    """Ascending positions as gap bytes."""
    gaps = np.diff(indices, prepend=-1) - 1
    long, rest = np.divmod(gaps, _LONG)
    ends = np.cumsum(long + 1)
    result = np.full(int(ends[-1]), _LONG, dtype=np.uint8)
    result[ends - 1] = rest
    return result


def indices_of(gaps: Bytes, k: int, num_values: int) -> Indices:
    """Positions from a peer's gap bytes.

    Raises:
        WireError: there are not exactly k positions within the frame.
    """
    last = gaps != _LONG
    steps = gaps.astype(np.int64)
    steps += last
    positions: Indices = np.cumsum(steps)[last] - 1
    if positions.size != k or not bool(last[-1]) or int(positions[-1]) >= num_values:
        raise WireError(
            f"the gaps of a sparse frame do not name {k} of its {num_values} values; "
            "the frame is refused. The sender must send it anew."
        )
    return positions
