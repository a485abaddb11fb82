"""Client-level DP at the server: the clipped mean of a cohort's updates, with noise.

Guarantees of one `noised_mean` (unit: client, add or remove one with everything it holds):
    Every update is bounded to norm C over all values together, their sum gets normal noise of
    stddev z * C, and the divisor is the *expected* cohort size, so that it tells nothing. Clients
    weigh the same. A cohort of nobody releases noise like any other.

The server sees every update: it is trusted, and what it publishes is what is protected. With
adaptive clipping a second sum is released, of one bit per client. Both are one Gaussian mechanism
of noise multiplier z together; `split_noise` says what each of them gets.

Source: McMahan et al. 2018, arXiv:1710.06963 (clipped mean, expected cohort size); Andrew et al.
2021, arXiv:1905.03871 (adaptive clipping).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedot.privacy.clipping import Bounded, add_noise
from fedot.privacy.noise import NoiseSource

__all__ = [
    "ClipRule",
    "NoiseSplit",
    "clip_update",
    "clipped_sum_of_updates",
    "next_clip_norm",
    "noised_mean",
    "split_noise",
]

# A client's bit counts as minus or plus a half, so adding a client moves their sum by no more.
_BIT_SENSITIVITY = 0.5


@dataclass(frozen=True, slots=True)
class NoiseSplit:
    """Noise multipliers of the two sums of one round; `bits` is None where C stays as it is."""

    updates: float
    bits: float | None


@dataclass(frozen=True, slots=True)
class ClipRule:
    """How C follows the clients' norms.

    Attributes:
        target_quantile: part of the clients whose norm should lie within C.
        learning_rate: of log C.
    """

    target_quantile: float
    learning_rate: float


def split_noise(noise_multiplier: float, bits_share: float | None) -> NoiseSplit:
    """Noise of both sums, so that both together cost what one Gaussian of z costs.

    Args:
        noise_multiplier: z that the accountant knows.
        bits_share: part of 1 / z^2 that the bits get, in (0, 1); None: no bits are released.

    Guarantees:
        1 / updates^2 + 1 / bits^2 = 1 / z^2 (Andrew et al. 2021, theorem 1).
    """
    if bits_share is None:
        return NoiseSplit(noise_multiplier, None)
    if not 0 < bits_share < 1:
        raise ValueError(f"bits_share is {bits_share:g}; it must be above 0 and below 1")
    return NoiseSplit(
        noise_multiplier / math.sqrt(1 - bits_share), noise_multiplier / math.sqrt(bits_share)
    )


def clip_update(update: Tensor, l2_clip_norm: float) -> Bounded:
    """Scale an update down until its L2 norm is at most `l2_clip_norm`.

    Args:
        update: adapter change, shape (P,), any float type.
        l2_clip_norm: C > 0, in the units of `update`.

    Returns:
        The update, shape (P,), float64, with its bound C.

    Guarantees:
        Norm <= C up to float64 rounding; a zero update stays zero. One that is not finite counts
        as zero: to refuse it would be a release of its own.

    Raises:
        ValueError: C is not positive.
    """
    if not 0 < l2_clip_norm < math.inf:
        raise ValueError(f"l2_clip_norm is {l2_clip_norm:g}; it must be above 0 and finite")
    wide = update.double()
    norm = float(wide.norm())
    if not math.isfinite(norm):
        return Bounded(torch.zeros_like(wide), l2_clip_norm)
    return Bounded(wide * min(1.0, l2_clip_norm / norm) if norm else wide, l2_clip_norm)


def clipped_sum_of_updates(
    updates: Sequence[Bounded], num_parameters: int, l2_clip_norm: float
) -> Bounded:
    """The sum over a cohort, each client once; zero for nobody.

    Raises:
        ValueError: an update's bound is above C, so that C would not bound the sum's change.
    """
    total = torch.zeros(num_parameters, dtype=torch.float64)
    for update in updates:
        if update.sensitivity > l2_clip_norm:
            raise ValueError(
                f"an update is bounded by {update.sensitivity:g}; the sum takes at most "
                f"{l2_clip_norm:g}. Clip it to that."
            )
        total += update.value
    return Bounded(total, l2_clip_norm)


def noised_mean(
    summed: Bounded, noise_multiplier: float, expected_cohort_size: float, noise: NoiseSource
) -> Tensor:
    """The Gaussian mechanism on a cohort's sum, over the expected number of clients; (P,), float64.

    Args:
        summed: of `clipped_sum_of_updates`; its memory is overwritten with noise.
        noise_multiplier: z of the updates (`NoiseSplit.updates`).
        expected_cohort_size: how many clients are drawn on average: public, never who answered.
        noise: a secret source, fresh for every round.
    """
    if not expected_cohort_size > 0:
        raise ValueError(f"expected_cohort_size is {expected_cohort_size:g}; it must be above 0")
    return add_noise(summed, noise_multiplier, noise) / expected_cohort_size


def next_clip_norm(
    norms: Sequence[float],
    l2_clip_norm: float,
    rule: ClipRule,
    noise_multiplier: float,
    expected_cohort_size: float,
    noise: NoiseSource,
) -> tuple[float, float]:
    """C of the next round, from a noised count of the updates whose norm lies within this one.

    Args:
        norms: of every update before clipping; they are looked at as bits only.
        l2_clip_norm: C of this round.
        rule: where C is to go.
        noise_multiplier: z of the bits (`NoiseSplit.bits`).
        expected_cohort_size: the divisor, as in `noised_mean`.
        noise: the round's source.

    Returns:
        The next C, and the noised part of clients within C, from 0 to 1.

    Guarantees:
        One client, added or removed, moves the sum by half; its noise has stddev z / 2.
    """
    bits = sum((norm <= l2_clip_norm) - _BIT_SENSITIVITY for norm in norms)
    counted = Bounded(torch.tensor([bits], dtype=torch.float64), _BIT_SENSITIVITY)
    noisy = float(add_noise(counted, noise_multiplier, noise)) / expected_cohort_size
    within = min(1.0, max(0.0, noisy + 0.5))
    step = -rule.learning_rate * (within - rule.target_quantile)
    return l2_clip_norm * math.exp(step), within
