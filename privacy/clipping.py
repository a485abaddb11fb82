"""Bounds and the noise that goes with them: nothing is noised whose bound is not known.

Source: Dwork and Roth 2014 (the Gaussian mechanism).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedot.privacy.noise import NoiseSource

__all__ = ["Bounded", "add_noise"]

# Values noised at once: the float64 numbers of a large adapter are never in memory all together.
_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Bounded:
    """A sum that one unit of privacy, added or removed, moves by at most `sensitivity` (L2).

    Only functions that clip make one, so noising a raw tensor fails the type check.

    Attributes:
        value: (P,), float32 or float64.
        sensitivity: C > 0, in the units of `value`.
    """

    value: Tensor
    sensitivity: float


def add_noise(bounded: Bounded, noise_multiplier: float, noise: NoiseSource) -> Tensor:
    """The Gaussian mechanism: normal noise of stddev z * sensitivity on every value, (P,).

    Guarantees:
        Numbers are drawn and added in float64 and rounded once. On a GPU they are drawn on the CPU
        all the same and moved: the device's own generators are not cryptographic.
    """
    noise_stddev = noise_multiplier * bounded.sensitivity
    noisy = torch.empty_like(bounded.value)
    for start in range(0, noisy.numel(), _CHUNK):
        part = bounded.value[start : start + _CHUNK]
        drawn = torch.from_numpy(noise.normal(part.numel())).to(part.device)
        noisy[start : start + _CHUNK] = drawn.mul_(noise_stddev).add_(part)
    return noisy
