"""What a sequence of DP-SGD steps costs, and how much noise a budget asks for.

Epsilon is an upper bound from privacy loss distributions (`dp-accounting`), computed from events
each time and never stored as truth. Neighbouring data sets differ by one added or removed record.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import dp_accounting
from dp_accounting.pld import PLDAccountant

from fedot.errors import BudgetError

__all__ = ["NEIGHBOURING", "SampledGaussian", "calibrate_noise", "epsilon_of"]

NEIGHBOURING = "add or remove one record"

# Grid of privacy losses. A finer one takes longer and gains less than 0.01 in epsilon; the result
# is an upper bound either way.
_INTERVAL = 1e-3
_MAX_NOISE_MULTIPLIER = 1e4


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """Some steps of DP-SGD: the accounting event of one round.

    Attributes:
        sampling_prob: q of Poisson sampling.
        noise_multiplier: z, noise stddev over sensitivity.
        num_steps: steps with this q and z.
    """

    sampling_prob: float
    noise_multiplier: float
    num_steps: int

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return asdict(self)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> SampledGaussian:
        """Read what `to_json` wrote."""
        return SampledGaussian(
            float(raw["sampling_prob"]), float(raw["noise_multiplier"]), int(raw["num_steps"])
        )


def epsilon_of(events: Iterable[SampledGaussian], delta: float) -> float:
    """Epsilon of all events together at `delta`; 0 for none.

    Source: Koskela et al. 2020; Doroshenko et al. 2022 (pessimistic PLD).
    """
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        steps[event.sampling_prob, event.noise_multiplier] += event.num_steps
    merged = tuple(sorted((q, z, n) for (q, z), n in steps.items() if n))
    return _epsilon(merged, delta)


@lru_cache(maxsize=1024)
def calibrate_noise(
    sampling_prob: float, num_steps: int, target_epsilon: float, delta: float
) -> float:
    """The noise multiplier z with which `num_steps` steps stay within `target_epsilon`.

    Raises:
        BudgetError: no noise below 10,000 times the sensitivity is enough.
    """

    def event(noise_multiplier: float) -> dp_accounting.DpEvent:
        return _dp_event(sampling_prob, noise_multiplier, num_steps)

    try:
        found = dp_accounting.calibrate_dp_mechanism(
            lambda: PLDAccountant(value_discretization_interval=_INTERVAL),
            event,
            target_epsilon,
            delta,
            _bracket(sampling_prob, num_steps, target_epsilon, delta),
            tol=1e-3,
        )
    except ValueError as error:
        raise BudgetError(
            f"no amount of noise keeps {num_steps} steps at sampling probability "
            f"{sampling_prob:g} within epsilon {target_epsilon:g} at delta {delta:g}. "
            "Take fewer steps, smaller batches or a larger epsilon."
        ) from error
    return float(found)


def _bracket(
    sampling_prob: float, num_steps: int, target_epsilon: float, delta: float
) -> dp_accounting.ExplicitBracketInterval:
    """Noise on either side of the target, close to it: every trial costs a convolution.

    The first guess is the limit of many steps (Gaussian DP), which is no bound but close.

    Raises:
        ValueError: even the most noise is not enough.
    """
    log_term = math.log(1 / delta)
    mu = math.sqrt(2 * log_term + 2 * target_epsilon) - math.sqrt(2 * log_term)
    guess = 1 / math.sqrt(math.log1p(mu**2 / (sampling_prob**2 * num_steps)))

    def spends(noise_multiplier: float) -> float:
        return _epsilon(((sampling_prob, noise_multiplier, num_steps),), delta)

    high = 1.2 * guess
    while high > _MAX_NOISE_MULTIPLIER or spends(high) > target_epsilon:
        high *= 1.5
        if high > _MAX_NOISE_MULTIPLIER:
            raise ValueError(f"no noise_multiplier up to {_MAX_NOISE_MULTIPLIER:g} is enough")
    low = high / 1.5
    while spends(low) < target_epsilon:
        high, low = low, low / 1.5
    return dp_accounting.ExplicitBracketInterval(low, high)


@lru_cache(maxsize=1024)
def _epsilon(merged: tuple[tuple[float, float, int], ...], delta: float) -> float:
    accountant = PLDAccountant(value_discretization_interval=_INTERVAL)
    for sampling_prob, noise_multiplier, num_steps in merged:
        accountant.compose(_dp_event(sampling_prob, noise_multiplier, num_steps))
    return float(accountant.get_epsilon(delta)) if merged else 0.0


def _dp_event(sampling_prob: float, noise_multiplier: float, num: int) -> dp_accounting.DpEvent:
    step = dp_accounting.PoissonSampledDpEvent(
        sampling_prob, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    return dp_accounting.SelfComposedDpEvent(step, num)
