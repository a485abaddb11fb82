"""What the server makes of a round's mean change: a plain step, or Adam over rounds.

Under DP the mean is noised already, so all of this is post-processing and costs nothing.

Source: Reddi et al. 2021, arXiv:2003.00295 (FedAdam).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "adam_step"]

_BETA_1, _BETA_2, _TINY = 0.9, 0.99, 1e-12


@dataclass(frozen=True, slots=True)
class Moments:
    """What Adam remembers, by tensor, float32: means of changes and of squares, and of how many."""

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    counts: Mapping[str, int]

    @staticmethod
    def none() -> Moments:
        """Before the first round."""
        return Moments({}, {}, {})


def adam_step(
    change: Mapping[str, Tensor], moments: Moments, learning_rate: float
) -> tuple[dict[str, Tensor], Moments]:
    """One step along a cohort's mean change.

    Args:
        change: of the tensors that trained in this round; others keep their moments.
        moments: after the rounds before.
        learning_rate: how far a value moves in a round at most, about.

    Returns:
        What is to be added to the state, float64, and the moments to give to the next round.

    Guarantees:
        A change that is the same in every round moves each value by `learning_rate` a round; a
        change of zero moves nothing.
    """
    first, second, counts = dict(moments.first), dict(moments.second), dict(moments.counts)
    step = {}
    for name, wide in ((name, tensor.double()) for name, tensor in change.items()):
        zero = torch.zeros_like(wide)
        mean = _BETA_1 * first.get(name, zero) + (1 - _BETA_1) * wide
        square = _BETA_2 * second.get(name, zero) + (1 - _BETA_2) * wide.square()
        counts[name] = counts.get(name, 0) + 1
        first[name], second[name] = mean.float(), square.float()
        mean = mean / (1 - _BETA_1 ** counts[name])
        square = square / (1 - _BETA_2 ** counts[name])
        step[name] = learning_rate * mean / (square.sqrt() + _TINY)
    return step, Moments(first, second, counts)
