from __future__ import annotations

import math

import pytest

from fedot.errors import BudgetError
from fedot.privacy.accounting import (
    SampledGaussian,
    calibrate_noise,
    epsilon_of,
    least_noise,
    rdp_epsilon_of,
)

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
    from opacus.accountants.analysis import gdp

    prob, noise_multiplier, steps = 0.01, 1.0, 1000
    claimed = gdp.compute_eps_poisson(
        steps=steps, noise_multiplier=noise_multiplier, sample_rate=prob, delta=DELTA
    )
    ours = epsilon_of([SampledGaussian(prob, noise_multiplier, steps)], DELTA)
    assert claimed == pytest.approx(1.62, abs=0.005)
    assert ours == pytest.approx(1.83, abs=0.005)
    # Renyi DP, from other mathematics, is a bound too: the truth is not below the claim by chance.
    optimistic = optimistic_epsilon(prob, noise_multiplier, steps)
    assert claimed < optimistic <= ours


def optimistic_epsilon(prob: float, noise_multiplier: float, steps: int) -> float:
    """A lower bound on the true epsilon: privacy losses rounded down instead of up."""
    from dp_accounting.pld import privacy_loss_distribution

    pld = privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sampling_prob=prob,
        value_discretization_interval=1e-4,
        pessimistic_estimate=False,
        use_connect_dots=False,
    )
    return float(pld.self_compose(steps).get_epsilon_for_delta(DELTA))


@pytest.mark.parametrize(("prob", "noise_multiplier", "steps"), [(0.1, 0.8, 60), (0.01, 1.0, 1000)])
def test_renyi_bound_is_above_and_near(prob: float, noise_multiplier: float, steps: int) -> None:
    events = [SampledGaussian(prob, noise_multiplier, steps)]
    pld, rdp = epsilon_of(events, DELTA), rdp_epsilon_of(events, DELTA)
    assert rdp is not None
    assert pld < rdp < 1.4 * pld


def test_capped_batches_cost_more_and_have_no_renyi_bound() -> None:
    free = SampledGaussian(0.1, 1.0, 60)
    costs = [
        epsilon_of([SampledGaussian(0.1, 1.0, 60, cap, 300)], DELTA) for cap in (300, 60, 40, 32)
    ]
    # A cap that is hardly ever reached costs hardly anything; its chance is a part of delta.
    assert costs[0] == pytest.approx(epsilon_of([free], DELTA), abs=1e-6)
    assert costs == sorted(costs)
    assert costs[-1] > 1.5 * costs[0]
    assert rdp_epsilon_of([SampledGaussian(0.1, 1.0, 60, 40, 300)], DELTA) is None
    assert rdp_epsilon_of([free, SampledGaussian(0.1, 1.0, 60, 40, 300)], DELTA) is None


def test_larger_of_two_neighbouring_data_sets_is_accounted() -> None:
    """With one record more a cut is likelier, so a data set of N is charged as one of N + 1."""
    from dp_accounting import SelfComposedDpEvent, TruncatedSubsampledGaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    def cost(num_records: int) -> float:
        accountant = PLDAccountant(value_discretization_interval=1e-3)
        step = TruncatedSubsampledGaussianDpEvent(num_records, 0.1, 36, 1.0)
        return float(accountant.compose(SelfComposedDpEvent(step, 60)).get_epsilon(DELTA))

    ours = epsilon_of([SampledGaussian(0.1, 1.0, 60, 36, 300)], DELTA)
    assert cost(300) < cost(301) == ours


@pytest.mark.parametrize("cap", [(60, 300), (32, 300)])
def test_calibration_meets_the_target_under_a_cap(cap: tuple[int, int]) -> None:
    noise_multiplier = calibrate_noise(0.1, 60, 8.0, DELTA, *cap)
    assert noise_multiplier > calibrate_noise(0.1, 60, 8.0, DELTA)
    epsilon = epsilon_of([SampledGaussian(0.1, noise_multiplier, 60, *cap)], DELTA)
    assert 7.9 < epsilon <= 8.0


def test_cap_and_number_of_records_go_together() -> None:
    with pytest.raises(ValueError, match="together"):
        SampledGaussian(0.1, 1.0, 60, max_batch_size=40)


def test_noise_that_fits_what_is_left() -> None:
    before = [SampledGaussian(0.1, 1.0, 30)]
    event = SampledGaussian(0.1, 0.5, 60)
    noise_multiplier = least_noise(before, event, 8.0, DELTA)
    assert noise_multiplier is not None
    together = [*before, SampledGaussian(0.1, noise_multiplier, 60)]
    assert 7.9 < epsilon_of(together, DELTA) <= 8.0
    assert least_noise([SampledGaussian(0.1, 0.5, 60)], event, 8.0, DELTA) is None


def test_target_that_almost_any_noise_meets_has_an_answer() -> None:
    # One step that draws a record less often than delta costs nothing at any noise.
    assert calibrate_noise(0.001, 1, 8.0, 0.01) == 0.1


def test_impossible_target_is_a_budget_error() -> None:
    with pytest.raises(BudgetError, match="no amount of noise"):
        calibrate_noise(1.0, 10**8, 1e-3, 1e-9)


def test_json_round_trip_is_exact() -> None:
    for event in (SampledGaussian(1 / 3, math.pi, 7), SampledGaussian(1 / 3, math.pi, 7, 9, 20)):
        assert SampledGaussian.from_json(event.to_json()) == event


def test_orders_of_renyi_dp_that_fail_are_left_out_silently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A batch of half of the records: dp-accounting warns once for each of the orders."""
    event = SampledGaussian(0.499025, 0.806525, 24)
    found = rdp_epsilon_of([event], 1e-5)
    assert found is not None
    assert found >= epsilon_of([event], 1e-5)
    assert not caplog.records


def test_epsilon_that_overflows_is_infinite_and_no_warning() -> None:
    """Warnings are errors here; around 700 the accountant divides by a mass next to zero."""
    assert epsilon_of([SampledGaussian(0.5161290322580645, 1.1303845117130504, 5008)], 1e-5) > 700
