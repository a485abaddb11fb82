"""Poisson sampling: every record is in a batch by its own coin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedot.privacy.noise import NoiseSource

__all__ = ["poisson_batch"]


def poisson_batch(num_records: int, sampling_prob: float, noise: NoiseSource) -> NDArray[np.int64]:
    """Row numbers of one batch; it may be empty, and must be released all the same.

    Args:
        num_records: rows to choose from.
        sampling_prob: q in (0, 1], the same for every row.
        noise: a secret source; see the design note of `fedot.privacy.noise`.
    """
    if not 0 < sampling_prob <= 1:
        raise ValueError(f"sampling_prob is {sampling_prob:g}; it must be in (0, 1]")
    return np.flatnonzero(noise.uniform(num_records) < sampling_prob)
