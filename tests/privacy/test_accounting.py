from __future__ import annotations

import math

import pytest

from fedot.errors import BudgetError
from fedot.privacy.accounting import SampledGaussian, calibrate_noise, epsilon_of

DELTA = 1e-5


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """Delta of one Gaussian release, exactly: Balle and Wang 2018, theorem 8."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    half = 1 / (2 * noise_multiplier)
    return phi(half - epsilon * noise_multiplier) - math.exp(epsilon) * phi(
        -half - epsilon * noise_multiplier
    )


@pytest.mark.parametrize("noise_multiplier", [0.8, 1.0, 4.0])
def test_one_full_batch_step_is_the_gaussian_mechanism(noise_multiplier: float) -> None:
    epsilon = epsilon_of([SampledGaussian(1.0, noise_multiplier, 1)], DELTA)
    # An upper bound that is at most a grid step or two above the exact value.
    assert gaussian_delta(epsilon, noise_multiplier) <= DELTA
    assert gaussian_delta(epsilon - 5e-3, noise_multiplier) > DELTA


def test_no_event_costs_nothing() -> None:
    assert epsilon_of([], DELTA) == 0.0


def test_rounds_add_up_to_one_event_of_all_their_steps() -> None:
    parts = epsilon_of([SampledGaussian(0.1, 1.0, 10)] * 6, DELTA)
    assert parts == epsilon_of([SampledGaussian(0.1, 1.0, 60)], DELTA)


def test_epsilon_grows_with_steps_and_sampling_and_falls_with_noise() -> None:
    base = epsilon_of([SampledGaussian(0.1, 1.0, 50)], DELTA)
    assert epsilon_of([SampledGaussian(0.1, 1.0, 100)], DELTA) > base
    assert epsilon_of([SampledGaussian(0.2, 1.0, 50)], DELTA) > base
    assert epsilon_of([SampledGaussian(0.1, 2.0, 50)], DELTA) < base


def test_calibrated_noise_meets_the_target_from_below_and_closely() -> None:
    noise_multiplier = calibrate_noise(0.1, 60, 8.0, DELTA)
    epsilon = epsilon_of([SampledGaussian(0.1, noise_multiplier, 60)], DELTA)
    assert 7.9 < epsilon <= 8.0


def test_bound_is_above_what_the_gdp_approximation_claims() -> None:
    """Pitfall 12: the `gdp` accountant's limit theorem is no bound; it claims less than is true."""
    from scipy.optimize import brentq

    prob, noise_multiplier, steps = 0.01, 0.7, 500
    mu = prob * math.sqrt(steps * (math.exp(1 / noise_multiplier**2) - 1))
    gdp = brentq(lambda epsilon: gaussian_delta(epsilon, 1 / mu) - DELTA, 0.01, 50)
    assert epsilon_of([SampledGaussian(prob, noise_multiplier, steps)], DELTA) > gdp


def test_impossible_target_is_a_budget_error() -> None:
    with pytest.raises(BudgetError, match="no amount of noise"):
        calibrate_noise(1.0, 10**8, 1e-3, 1e-9)


def test_json_round_trip_is_exact() -> None:
    event = SampledGaussian(1 / 3, math.pi, 7)
    assert SampledGaussian.from_json(event.to_json()) == event
