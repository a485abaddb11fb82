"""What a sequence of DP-SGD steps costs, and how much noise a budget asks for.

Epsilon is an upper bound from privacy loss distributions (PLD, `dp-accounting`), computed from
events each time and never stored as truth. Renyi DP stands beside it where it exists: a looser
bound from other mathematics. Neighbouring data sets differ by one added or removed record, in the
server's ledger (`client_level`) by one client.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

from fedot.errors import BudgetError

__all__ = [
    "NEIGHBOURING",
    "NEIGHBOURING_CLIENTS",
    "SampledGaussian",
    "calibrate_noise",
    "epsilon_of",
    "least_noise",
    "rdp_epsilon_of",
]

NEIGHBOURING = "add or remove one record"
NEIGHBOURING_CLIENTS = "add or remove one client"

# Grid of privacy losses. A finer one takes longer and gains less than 0.01 in epsilon; the result
# is an upper bound either way.
_INTERVAL = 1e-3
_MIN_NOISE_MULTIPLIER, _MAX_NOISE_MULTIPLIER = 0.1, 1e4
_NOISE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """Some steps of DP-SGD: the accounting event of one round.

    Attributes:
        sampling_prob: q of Poisson sampling.
        noise_multiplier: z, noise stddev over sensitivity.
        num_steps: steps with this q and z.
        max_batch_size: a larger batch is cut down to a random subset of so many records; None:
            never. Cutting makes two records of a batch depend on each other, so it costs epsilon.
        num_records: of the data set; needed for a cap, and left out without one.
    """

    sampling_prob: float
    noise_multiplier: float
    num_steps: int
    max_batch_size: int | None = None
    num_records: int | None = None

    def __post_init__(self) -> None:
        if (self.max_batch_size is None) != (self.num_records is None):
            raise ValueError("max_batch_size and num_records are given together or not at all")

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> SampledGaussian:
        """Read what `to_json` wrote."""
        capped = "max_batch_size" in raw
        return SampledGaussian(
            float(raw["sampling_prob"]),
            float(raw["noise_multiplier"]),
            int(raw["num_steps"]),
            int(raw["max_batch_size"]) if capped else None,
            int(raw["num_records"]) if capped else None,
        )


def epsilon_of(events: Iterable[SampledGaussian], delta: float) -> float:
    """Epsilon of all events together at `delta`; 0 for none.

    Source: Koskela et al. 2020; Doroshenko et al. 2022 (pessimistic PLD); for capped batches
    arXiv:2508.15089.
    """
    return _epsilon(_merged(events), delta)


def rdp_epsilon_of(events: Iterable[SampledGaussian], delta: float) -> float | None:
    """The same from Renyi DP, a looser bound; None where an event has a capped batch.

    Source: Mironov et al. 2019 (Poisson-sampled Gaussian).
    """
    merged = _merged(events)
    if any(event.max_batch_size is not None for event in merged):
        return None
    return _rdp_epsilon(merged, delta)


@lru_cache(maxsize=1024)
def calibrate_noise(
    sampling_prob: float,
    num_steps: int,
    target_epsilon: float,
    delta: float,
    max_batch_size: int | None = None,
    num_records: int | None = None,
) -> float:
    """The noise multiplier z with which `num_steps` steps stay within `target_epsilon`.

    Raises:
        BudgetError: no noise below 10,000 times the sensitivity is enough.
    """
    event = SampledGaussian(sampling_prob, 1.0, num_steps, max_batch_size, num_records)
    noise_multiplier = least_noise((), event, target_epsilon, delta)
    if noise_multiplier is None:
        raise BudgetError(
            f"no amount of noise keeps {num_steps} steps at sampling probability "
            f"{sampling_prob:g} within epsilon {target_epsilon:g} at delta {delta:g}. "
            "Take fewer steps, smaller batches or a larger epsilon."
        )
    return noise_multiplier


def least_noise(
    before: Iterable[SampledGaussian], event: SampledGaussian, target_epsilon: float, delta: float
) -> float | None:
    """The z with which `event` stays within the target together with all that was before it.

    Args:
        before: what has been spent already.
        event: what is to come; its own noise multiplier is not looked at.
        target_epsilon: of all together.
        delta: of all together.

    Returns:
        z, at least 0.1, at most 0.1 % above the least one and never below it; None if no noise is
        enough.
    """
    held = tuple(before)
    if epsilon_of(held, delta) >= target_epsilon:
        return None

    def spends(noise_multiplier: float) -> float:
        return epsilon_of([*held, replace(event, noise_multiplier=noise_multiplier)], delta)

    # The limit of many steps (Gaussian DP) is no bound, but close: every trial costs a convolution.
    log_term = math.log(1 / delta)
    mu = math.sqrt(2 * log_term + 2 * target_epsilon) - math.sqrt(2 * log_term)
    steps = event.sampling_prob**2 * event.num_steps
    high = 1.2 / math.sqrt(math.log1p(mu**2 / steps))
    while high > _MAX_NOISE_MULTIPLIER or spends(high) > target_epsilon:
        high *= 1.5
        if high > _MAX_NOISE_MULTIPLIER:
            return None
    high = max(high, _MIN_NOISE_MULTIPLIER)
    low = high / 1.5
    while spends(low) <= target_epsilon:
        high, low = low, low / 1.5
        if high <= _MIN_NOISE_MULTIPLIER:
            return _MIN_NOISE_MULTIPLIER
    tolerance = _NOISE_TOLERANCE * low
    found = float(brentq(lambda z: spends(z) - target_epsilon, low, high, xtol=tolerance / 4))
    while spends(found) > target_epsilon:
        found += tolerance / 4
    return min(found, high)


def _merged(events: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    """Events that differ in their steps only become one; in an order of their own."""
    steps: Counter[SampledGaussian] = Counter()
    for event in events:
        steps[replace(event, num_steps=0)] += event.num_steps
    merged = (replace(event, num_steps=num) for event, num in steps.items() if num)
    return tuple(sorted(merged, key=repr))


@lru_cache(maxsize=4096)
def _epsilon(merged: tuple[SampledGaussian, ...], delta: float) -> float:
    accountant = PLDAccountant(value_discretization_interval=_INTERVAL)
    # A cut that is next to impossible has a mass that overflows one of several tail bounds. An
    # epsilon of thousands may come out infinite, which is an upper bound too.
    with np.errstate(over="ignore"):
        for event in merged:
            accountant.compose(_dp_event(event))
        epsilon = float(accountant.get_epsilon(delta)) if merged else 0.0
    if math.isnan(epsilon):
        raise BudgetError("epsilon of so many steps cannot be computed; nothing is claimed.")
    return epsilon


@lru_cache(maxsize=1024)
def _rdp_epsilon(merged: tuple[SampledGaussian, ...], delta: float) -> float:
    accountant = RdpAccountant()
    # An order whose series does not converge is left out, which can only loosen the bound.
    with _quiet("absl"):
        for event in merged:
            accountant.compose(_dp_event(event))
    return float(accountant.get_epsilon(delta)) if merged else 0.0


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Drop a library's warnings for a while."""
    library = logging.getLogger(name)
    before = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(before)


def _dp_event(event: SampledGaussian) -> dp_accounting.DpEvent:
    if event.max_batch_size is None or event.num_records is None:
        step = dp_accounting.PoissonSampledDpEvent(
            event.sampling_prob, dp_accounting.GaussianDpEvent(event.noise_multiplier)
        )
    else:
        # The larger of two neighbouring data sets: with one more record a cut is likelier.
        step = dp_accounting.TruncatedSubsampledGaussianDpEvent(
            event.num_records + 1,
            event.sampling_prob,
            event.max_batch_size,
            event.noise_multiplier,
        )
    return dp_accounting.SelfComposedDpEvent(step, event.num_steps)
