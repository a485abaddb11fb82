from __future__ import annotations

import pytest
import torch

from fedot.privacy.clipping import Bounded, add_noise, clip_factors
from fedot.privacy.noise import KEY_BYTES, NoiseSource


def keyed() -> NoiseSource:
    return NoiseSource(bytes(range(KEY_BYTES)))


def test_factors_worked_by_hand() -> None:
    norms = torch.tensor([0.0, 0.25, 0.5, 2.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 1.0, 1.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(clip_factors(norms, 0.5), expected, atol=3e-6, rtol=0)


def test_clipped_norm_never_exceeds_the_bound() -> None:
    norms = torch.logspace(-6, 12, 10_000)
    assert (clip_factors(norms, 0.3) * norms <= 0.3 * (1 + 1e-6)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_counts_as_zero(value: float) -> None:
    assert clip_factors(torch.tensor([value, 1.0]), 1.0)[0] == 0


def test_noise_is_the_sources_numbers_times_z_and_the_bound() -> None:
    bounded = Bounded(torch.ones(300_000), 0.5)
    noisy = add_noise(bounded, 3.0, keyed())
    source, size = keyed(), 2**18  # the parts in which it is drawn
    drawn = [torch.from_numpy(source.normal(n)) for n in (size, 300_000 - size)]
    torch.testing.assert_close(noisy, (1 + 1.5 * torch.cat(drawn)).float(), atol=0, rtol=0)


def test_no_clean_sum_is_left_behind() -> None:
    bounded = Bounded(torch.zeros(8), 1.0)
    add_noise(bounded, 1.0, keyed())
    assert (bounded.value != 0).all()


def test_sums_over_other_rows_keep_the_bound() -> None:
    both = Bounded(torch.ones(2), 0.5).plus_other_rows(Bounded(torch.ones(2), 0.5))
    assert both.sensitivity == 0.5
    assert both.value.tolist() == [2.0, 2.0]
