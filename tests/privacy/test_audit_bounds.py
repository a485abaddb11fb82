"""Bounds from membership games: worked by hand, against each other, and on simulated mechanisms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedot.privacy.accounting import SampledGaussian, epsilon_of
from fedot.privacy.audit_bounds import (
    SampledGaussianFamily,
    clopper_pearson,
    f_dp_lower_bound,
    f_dp_refutes,
    fewest_refuting,
    guess,
    one_run_lower_bound,
    repeated_lower_bound,
)

DELTA = 1e-5
WHOLE = SampledGaussianFamily(1.0, 1)


def test_a_thousand_canaries_cannot_show_more_than_5_8() -> None:
    """All right has chance p^1000, p = e^epsilon / (1 + e^epsilon): 5 % at epsilon 5.81."""
    p = 0.05 ** (1 / 1000)
    by_hand = math.log(p / (1 - p))
    assert one_run_lower_bound(1000, 1000, 1000, delta=0.0) == pytest.approx(by_hand, abs=1e-4)
    assert by_hand == pytest.approx(5.81, abs=0.005)


def test_one_run_bound_is_the_binomial_one_without_delta() -> None:
    epsilon = one_run_lower_bound(400, 100, 80, delta=0.0)
    right_prob = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert stats.binom.sf(79, 100, right_prob) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("bound", ["one-run", "f-DP"])
def test_bounds_grow_with_right_guesses_and_guessing_shows_nothing(bound: str) -> None:
    def of(correct: int) -> float:
        if bound == "one-run":
            return one_run_lower_bound(300, 60, correct, DELTA)
        return f_dp_lower_bound(WHOLE, 300, 60, correct, DELTA)

    found = [of(correct) for correct in (0, 30, 42, 50, 60)]
    assert found == sorted(found)
    assert found[0] == found[1] == 0.0
    assert found[2] > 0
    assert found[4] > 2.9


def test_delta_only_weakens_the_one_run_bound() -> None:
    with_delta = one_run_lower_bound(500, 100, 90, delta=1e-3)
    assert 0 < with_delta < one_run_lower_bound(500, 100, 90, delta=0.0)


def test_inverse_blow_up_is_the_gaussian_trade_off_curve() -> None:
    """Of one Gaussian step: Phi(Phi^-1(y) - 1/z), from below and nearly touching."""
    inverse = WHOLE.inverse_blow_up(2.0)
    for y in (0.001, 0.05, 0.3, 0.7, 0.99):
        true = stats.norm.cdf(stats.norm.ppf(y) - 0.5)
        assert true * 0.98 - 1e-6 <= inverse(y) <= true + 1e-9


@pytest.mark.parametrize(("q", "steps", "z"), [(1.0, 3, 4.0), (0.3, 10, 2.0)])
def test_a_familys_epsilon_is_the_accountants_rounded_down(q: float, steps: int, z: float) -> None:
    ours = SampledGaussianFamily(q, steps).epsilon(z, DELTA)
    theirs = epsilon_of([SampledGaussian(q, z, steps)], DELTA)
    assert theirs - 0.15 <= ours <= theirs


def played(mu: float, num_canaries: int, rng: np.random.Generator) -> int:
    """Right guesses, of a fifth of the canaries, about one Gaussian step with z = 1 / mu."""
    members = rng.random(num_canaries) < 0.5
    scores = members + rng.standard_normal(num_canaries) / mu
    return guess(scores, members, num_canaries // 5)


def test_the_f_dp_bound_holds_and_is_close() -> None:
    """True mechanisms are refuted at most once in 20: in 200 games more than 20 times, p < 0.005.

    And it is no empty bound: it shows at least a third of what is there.
    """
    rng, mu = np.random.default_rng(0), 1.0
    inverse = WHOLE.inverse_blow_up(1 / mu)
    needed = fewest_refuting(inverse, 500, 100)
    correct = [played(mu, 500, rng) for _ in range(200)]
    assert sum(c >= needed for c in correct) <= 20
    true = WHOLE.epsilon(1 / mu, DELTA)
    shown = f_dp_lower_bound(WHOLE, 500, 100, int(np.median(correct)), DELTA)
    assert true / 3 <= shown <= true
    assert shown > one_run_lower_bound(500, 100, int(np.median(correct)), DELTA)


def test_fewest_refuting_is_where_refutation_begins() -> None:
    inverse = WHOLE.inverse_blow_up(3.0)
    needed = fewest_refuting(inverse, 400, 80)
    assert f_dp_refutes(inverse, 400, 80, needed)
    assert not f_dp_refutes(inverse, 400, 80, needed - 1)
    assert fewest_refuting(WHOLE.inverse_blow_up(0.2), 400, 80) is None


def test_clopper_pearson_by_hand() -> None:
    """No hit in n: the upper bound solves (1 - p)^n = 5 %."""
    low, high = clopper_pearson(0, 50, 0.95)
    assert low == 0
    assert high == pytest.approx(1 - 0.05 ** (1 / 50))
    assert clopper_pearson(50, 50, 0.95) == (pytest.approx(0.05 ** (1 / 50)), 1.0)


def test_repeated_games_bound_from_the_rates() -> None:
    low, _ = clopper_pearson(90, 100, 0.975)
    _, high = clopper_pearson(5, 100, 0.975)
    by_hand = math.log((low - DELTA) / high)
    # The opposite event binds as well, but here it says less.
    assert repeated_lower_bound(90, 100, 5, 100, DELTA) == pytest.approx(by_hand)
    assert repeated_lower_bound(50, 100, 50, 100, DELTA) == 0.0
    assert repeated_lower_bound(0, 0, 0, 0, DELTA) == 0.0


def test_guess_calls_the_ends_and_abstains_between() -> None:
    scores = np.array([0.1, 5.0, -3.0, 2.0, 0.2])
    members = np.array([True, True, False, False, False])
    assert guess(scores, members, 2) == 2
    assert guess(scores, members, 4) == 2 + 0 + 0


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="6 of 5 guesses"):
        one_run_lower_bound(10, 5, 6, DELTA)
    with pytest.raises(ValueError, match="about 0 canaries"):
        f_dp_lower_bound(WHOLE, 0, 0, 0, DELTA)
