"""The clipped mean of a cohort with noise: bounds, spread, divisor, cost."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2, norm
from torch import Tensor

from fedot.privacy.accounting import SampledGaussian, calibrate_noise, epsilon_of
from fedot.privacy.client_level import (
    ClipRule,
    clip_update,
    clipped_sum_of_updates,
    next_clip_norm,
    noised_mean,
    split_noise,
)
from fedot.privacy.clipping import Bounded
from fedot.privacy.noise import NoiseSource

NUM = 50


def a_source(number: int) -> NoiseSource:
    return NoiseSource(number.to_bytes(32, "big"))


def some_updates(num: int, scale: float = 3.0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [scale * torch.randn(NUM, generator=rng) for _ in range(num)]


def the_sum(updates: list[Tensor], l2_clip_norm: float = 1.0) -> Tensor:
    clipped = [clip_update(update, l2_clip_norm) for update in updates]
    return clipped_sum_of_updates(clipped, NUM, l2_clip_norm).value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_clipped_norm_never_exceeds_bound(dtype: torch.dtype, scale: float) -> None:
    update = (scale * torch.randn(NUM, generator=torch.Generator().manual_seed(1))).to(dtype)
    bounded = clip_update(update, 0.5)
    # Float64 rounding of 50 squares.
    assert float(bounded.value.norm()) <= 0.5 * (1 + 1e-14)
    if float(update.double().norm()) <= 0.5:
        assert torch.equal(bounded.value, update.double())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_update_that_is_not_finite_counts_as_zero(bad: float) -> None:
    update = torch.ones(NUM)
    update[3] = bad
    assert not clip_update(update, 1.0).value.any()
    assert not clip_update(torch.zeros(NUM), 1.0).value.any()


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_bound_must_be_positive_and_finite(bound: float) -> None:
    with pytest.raises(ValueError, match="l2_clip_norm"):
        clip_update(torch.ones(NUM), bound)


def test_one_client_moves_the_sum_by_the_bound_at_most() -> None:
    updates = some_updates(5)
    for client in range(5):
        rest = updates[:client] + updates[client + 1 :]
        assert float((the_sum(updates) - the_sum(rest)).norm()) <= 1 + 1e-12
        # Replacing is removing and adding, so it may move the sum twice as far.
        opposite = [*rest, -1e9 * updates[client]]
        assert 1 < float((the_sum(updates) - the_sum(opposite)).norm()) <= 2 + 1e-12


def test_update_that_was_not_clipped_is_refused() -> None:
    """The planted bug: somebody's update enters the sum with a bound of its own."""
    whole = some_updates(1)[0].double()
    with pytest.raises(ValueError, match="Clip it to that"):
        clipped_sum_of_updates([Bounded(whole, float(whole.norm()))], NUM, 1.0)


def test_without_noise_or_clipping_is_plain_averaging() -> None:
    updates = some_updates(4)
    clipped = [clip_update(update, 1e6) for update in updates]
    summed = clipped_sum_of_updates(clipped, NUM, 1e6)
    mean = noised_mean(summed, 0.0, 4.0, a_source(0))
    # Float64 sums of four terms of size three.
    torch.testing.assert_close(mean, torch.stack(updates).double().mean(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("num_answered", [0, 2, 5])
def test_noise_has_the_spread_that_is_claimed_whoever_answered(num_answered: int) -> None:
    """Chi-squared, both sides; false alarm 1e-6 for each of three cases.

    The planted bugs it would see: the number who answered in the divisor (2 or 5 for 4), no noise
    for an empty cohort, noise for the mean instead of the sum.
    """
    l2_clip_norm, noise_multiplier, expected = 0.5, 1.3, 4.0
    updates = some_updates(num_answered)
    clipped = [clip_update(update, l2_clip_norm) for update in updates]
    clean = clipped_sum_of_updates(clipped, NUM, l2_clip_norm).value / expected
    draws = []
    for seed in range(200):
        summed = clipped_sum_of_updates(clipped, NUM, l2_clip_norm)
        draws.append(noised_mean(summed, noise_multiplier, expected, a_source(seed)) - clean)
    claimed = noise_multiplier * l2_clip_norm / expected
    squares = float((torch.stack(draws) / claimed).square().sum())
    low, high = chi2.ppf([5e-7, 1 - 5e-7], 200 * NUM)
    assert low < squares < high


def test_the_number_who_answered_is_not_the_divisor() -> None:
    """Planted: dividing by who came. Then one client more changes everybody's weight."""
    alone = clip_update(torch.ones(NUM), 1.0)
    for expected in (1.0, 4.0):
        summed = clipped_sum_of_updates([alone], NUM, 1.0)
        mean = noised_mean(summed, 0.0, expected, a_source(0))
        torch.testing.assert_close(mean, alone.value / expected)
    with pytest.raises(ValueError, match="expected_cohort_size"):
        noised_mean(summed, 0.0, 0.0, a_source(0))


def test_both_sums_together_cost_one_gaussian() -> None:
    split = split_noise(1.5, 0.1)
    assert split.bits is not None
    assert 1 / split.updates**2 + 1 / split.bits**2 == pytest.approx(1 / 1.5**2, rel=1e-12)
    assert split_noise(1.5, None).updates == 1.5
    with pytest.raises(ValueError, match="bits_share"):
        split_noise(1.5, 1.0)


def test_epsilon_is_that_of_the_gaussian_worked_by_hand() -> None:
    """Four rounds of z are one Gaussian of z / 2 (Balle and Wang 2018, theorem 8)."""
    noise_multiplier, rounds, delta = 3.0, 4, 1e-5
    spent = epsilon_of([SampledGaussian(1.0, noise_multiplier, 1)] * rounds, delta)
    mu = math.sqrt(rounds) / noise_multiplier

    def delta_of(epsilon: float) -> float:
        left = norm.cdf(mu / 2 - epsilon / mu)
        return float(left - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))

    # The accountant's bound is from above, on a grid of 1e-3.
    assert delta_of(spent) <= delta
    assert delta_of(spent - 0.01) > delta
    assert calibrate_noise(1.0, rounds, spent, delta) == pytest.approx(noise_multiplier, rel=2e-3)


def test_bound_follows_the_quantile() -> None:
    norms, bound = [0.5 + 0.1 * n for n in range(20)], 10.0
    rule = ClipRule(target_quantile=0.5, learning_rate=0.2)
    for seed in range(200):
        bound, _ = next_clip_norm(norms, bound, rule, 0.5, 20.0, a_source(seed))
    # The median is 1.45; noise of 0.0125 in the part within moves the end by far less than 0.2.
    assert 1.2 < bound < 1.7


def test_one_client_moves_the_count_by_half_and_noise_covers_that() -> None:
    """Noise on the count has stddev z / 2; normal, 400 draws, false alarm 1e-6."""
    rule = ClipRule(target_quantile=0.5, learning_rate=1.0)
    noise_multiplier, expected = 0.4, 10.0
    within = [
        next_clip_norm([1.0] * 5, 1.0, rule, noise_multiplier, expected, a_source(seed))[1]
        for seed in range(400)
    ]
    # Five within: 5 * 0.5 / 10 above a half.
    sums = (torch.tensor(within, dtype=torch.float64) - 0.75) * expected
    squares = float((sums / (noise_multiplier / 2)).square().sum())
    low, high = chi2.ppf([5e-7, 1 - 5e-7], 400)
    assert low < squares < high


def test_nobody_says_nothing_about_the_bound() -> None:
    rule = ClipRule(target_quantile=0.5, learning_rate=0.2)
    bound, within = next_clip_norm([], 2.0, rule, 0.0, 3.0, a_source(0))
    assert (bound, within) == (2.0, 0.5)
