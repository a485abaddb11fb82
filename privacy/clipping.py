"""Bounds and the noise that goes with them: nothing is noised whose bound is not known.

Source: Abadi et al. 2016 (per-example clipping); Dwork and Roth 2014 (the Gaussian mechanism).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedot.privacy.noise import NoiseSource
from fedot.privacy.per_sample import PerExampleGradients

__all__ = ["Bounded", "add_noise", "clip_factors", "clipped_sum"]

# Values noised at once: in the processor's cache, or worth a transfer to the device.
_CHUNK, _DEVICE_CHUNK = 2**18, 2**22


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

    def plus_other_rows(self, other: Bounded) -> Bounded:
        """The sum of both. No unit may be in both: then the larger bound still holds."""
        return Bounded(self.value + other.value, max(self.sensitivity, other.sensitivity))


def clip_factors(norms: Tensor, l2_clip_norm: float) -> Tensor:
    """By what each example's gradient is multiplied so that its norm is at most C.

    Args:
        norms: (B,), float32 or float64.
        l2_clip_norm: C > 0.

    Guarantees:
        factor * norm <= C up to rounding; 0 where a norm is not finite.
    """
    factors = (l2_clip_norm / (norms + 1e-6)).clamp(max=1.0)
    return torch.where(norms.isfinite(), factors, torch.zeros_like(factors))


def clipped_sum(gradients: PerExampleGradients, l2_clip_norm: float) -> Bounded:
    """Sum of all rows' gradients, each scaled down to norm C over all parameters together."""
    if gradients.is_empty:
        return Bounded(gradients.zeros(), l2_clip_norm)
    factors = clip_factors(gradients.norms(), l2_clip_norm)
    return Bounded(gradients.weighted_sum(factors), l2_clip_norm)


def add_noise(bounded: Bounded, noise_multiplier: float, noise: NoiseSource) -> Tensor:
    """The Gaussian mechanism: normal noise of stddev z * sensitivity on every value, (P,).

    Guarantees:
        Numbers are drawn and added in float64 and rounded once, into the memory of
        `bounded.value`: no clean sum is left behind. On a GPU they are drawn on the CPU all the
        same and moved, because the device's own generators are not cryptographic.
    """
    noise_stddev = noise_multiplier * bounded.sensitivity
    chunk = _CHUNK if bounded.value.device.type == "cpu" else _DEVICE_CHUNK
    for part in bounded.value.split(chunk):
        drawn = torch.from_numpy(noise.normal(part.numel())).to(part.device)
        part.copy_(drawn.mul_(noise_stddev).add_(part))
    return bounded.value
