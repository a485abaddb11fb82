"""Poisson sampling: every record is in a batch by its own coin, up to a cap if there is one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedot.privacy.noise import NoiseSource

__all__ = ["poisson_batch"]


def poisson_batch(
    num_records: int,
    sampling_prob: float,
    noise: NoiseSource,
    max_batch_size: int | None = None,
) -> NDArray[np.int64]:
    """Row numbers of one batch; it may be empty, and must be released all the same.

    Args:
        num_records: rows to choose from.
        sampling_prob: q in (0, 1], the same for every row.
        noise: a secret source; see the design note of `fedot.privacy.noise`.
        max_batch_size: of more rows than this, so many are kept, uniformly at random. That is
            another mechanism than Poisson sampling (then whether a row is kept depends on how many
            others were drawn) and must be accounted as such: `TruncatedSubsampledGaussian`.

    Source: arXiv:2508.15089 (truncated Poisson sampling).
    """
    if not 0 < sampling_prob <= 1:
        raise ValueError(f"sampling_prob is {sampling_prob:g}; it must be in (0, 1]")
    if max_batch_size is not None and max_batch_size < 1:
        raise ValueError(f"max_batch_size is {max_batch_size}; it must be at least 1, or None")
    rows = np.flatnonzero(noise.uniform(num_records) < sampling_prob)
    if max_batch_size is None or len(rows) <= max_batch_size:
        return rows
    order = np.argsort(noise.uniform(len(rows)), kind="stable")
    return np.sort(rows[order[:max_batch_size]])
