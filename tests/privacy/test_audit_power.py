"""What a game could find, decided before it is played."""

from __future__ import annotations

import numpy as np

from fedot.privacy.accounting import calibrate_noise
from fedot.privacy.audit_bounds import SampledGaussianFamily
from fedot.privacy.audit_power import enough_canaries, likelihood_ratio, plan_game

FAMILY = SampledGaussianFamily(0.5, 4)


def plan(epsilon: float, canaries: int = 500):
    noise = calibrate_noise(0.5, 4, epsilon, 1e-5)
    return plan_game(FAMILY, noise, canaries, np.random.default_rng(0))


def test_power_is_ordered_and_right_noise_is_left_alone() -> None:
    found = plan(1.0)
    power = list(found.power.values())
    assert list(found.power) == ["noise / 2", "noise / 4", "no noise"]
    assert power == sorted(power)
    assert power[1] > 0.95
    # At most 5 % by the theory; 60 simulated games show more than 15 % with chance 0.001.
    assert found.false_alarm <= 0.15


def test_few_canaries_cannot_refute_a_large_epsilon() -> None:
    found = plan(30.0, canaries=40)
    assert set(found.power.values()) == {0.0}


def test_likelihood_ratio_by_hand() -> None:
    seen = np.array([[1.0, 0.0]])
    np.testing.assert_allclose(likelihood_ratio(seen, 1.0, 2.0), [1 / 8, -1 / 8])
    sampled = np.log(0.75 + 0.25 * np.exp([1 / 8, -1 / 8]))
    np.testing.assert_allclose(likelihood_ratio(seen, 0.25, 2.0), sampled)


def test_enough_canaries_have_power_and_fewer_have_none() -> None:
    family, noise = SampledGaussianFamily(1.0, 10), calibrate_noise(1.0, 10, 8.0, 1e-5)
    enough = enough_canaries(family, noise, 50, np.random.default_rng(0))
    assert enough == 500
    few, many = (plan_game(family, noise, num, np.random.default_rng(1)) for num in (50, enough))
    assert few.power["no noise"] == 0
    # Ten simulated games said at least every second one.
    assert many.power["no noise"] > 0.3
    assert enough_canaries(family, noise, 600, np.random.default_rng(0)) == 600


def test_claims_that_no_number_of_canaries_refutes_are_told() -> None:
    noise = calibrate_noise(0.5, 4, 8.0, 1e-5)
    assert enough_canaries(FAMILY, noise, 2000, np.random.default_rng(0)) is None
