"""How the updates of a cohort become one: mean, and trimmed mean by count.

Updates are summed in the order given (the caller sorts by client) in float64, so that the order in
which they arrived changes no bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedot.errors import ProtocolError

__all__ = ["mean", "trimmed_mean"]

Update = Mapping[str, Tensor]


def mean(updates: Sequence[Update]) -> dict[str, Tensor]:
    """Coordinate-wise mean, every client with the same weight; float64.

    Raises:
        ProtocolError: there is no update, or a value is not finite.
    """
    return trimmed_mean(updates, num_trimmed=0)


def trimmed_mean(updates: Sequence[Update], num_trimmed: int) -> dict[str, Tensor]:
    """Coordinate-wise mean without the `num_trimmed` lowest and highest values.

    Args:
        updates: one per client, same names and shapes.
        num_trimmed: b >= 0; n updates need n > 2b. b = 0 is the plain mean.

    Returns:
        float64 tensors.

    Guarantees:
        With at most b arbitrary updates every coordinate stays within the range of the others.

    Raises:
        ProtocolError: too few updates, or a value is not finite.

    Source: Yin et al. 2018, arXiv:1803.01498.
    """
    if len(updates) <= 2 * num_trimmed:
        raise ProtocolError(
            f"{len(updates)} updates arrived; trimming {num_trimmed} at each end needs at least "
            f"{2 * num_trimmed + 1}. The round cannot be closed."
        )
    return {name: _coordinate_mean(name, updates, num_trimmed) for name in sorted(updates[0])}


def _coordinate_mean(name: str, updates: Sequence[Update], num_trimmed: int) -> Tensor:
    stacked = torch.stack([update[name].double() for update in updates])
    if not stacked.isfinite().all():
        raise ProtocolError(f"an update's {name} is not finite; it must never reach the mean.")
    if num_trimmed:
        stacked = stacked.sort(dim=0).values[num_trimmed:-num_trimmed]
    total = torch.zeros_like(stacked[0])
    for row in stacked:
        total += row
    return total / len(stacked)
