from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedot.privacy.noise import KEY_BYTES, NoiseSource
from fedot.privacy.sampling import poisson_batch

KEY = bytes(range(KEY_BYTES))


def test_batch_size_is_binomial() -> None:
    # Fixed key; over keys each bound fails by chance once in 10,000 (binomial, n = 200 * 500).
    noise = NoiseSource(KEY)
    sizes = [len(poisson_batch(200, 0.1, noise)) for _ in range(500)]
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], 200 * 500, 0.1)
    assert low < sum(sizes) < high
    assert len(set(sizes)) > 5, "a fixed batch size is shuffling, not Poisson sampling"


def test_small_probability_gives_empty_batches() -> None:
    noise = NoiseSource(KEY)
    assert any(len(poisson_batch(10, 0.05, noise)) == 0 for _ in range(50))


def test_probability_one_takes_every_row() -> None:
    assert poisson_batch(7, 1.0, NoiseSource(KEY)).tolist() == list(range(7))


def test_rows_are_distinct_and_sorted() -> None:
    rows = poisson_batch(1000, 0.5, NoiseSource(KEY))
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("prob", [0.0, -0.1, 1.5])
def test_probability_out_of_range_is_refused(prob: float) -> None:
    with pytest.raises(ValueError, match="sampling_prob"):
        poisson_batch(10, prob, NoiseSource(KEY))


def test_cap_holds_and_cuts_only_larger_batches() -> None:
    capped, free = NoiseSource(KEY), NoiseSource(KEY)
    is_cut = []
    for _ in range(200):
        rows, all_rows = poisson_batch(100, 0.1, capped, 10), poisson_batch(100, 0.1, free)
        is_cut.append(len(all_rows) > 10)
        if is_cut[-1]:
            free.uniform(len(all_rows))  # what choosing who stays took from the stream
        assert len(rows) == min(10, len(all_rows))
        assert set(rows) <= set(all_rows)
        assert (np.diff(rows) > 0).all()
    assert 20 < sum(is_cut) < 180


def test_a_capped_batch_keeps_every_row_equally_often() -> None:
    # Fixed key; over keys this fails by chance once in 1,000 (chi-squared, 19 degrees of freedom).
    noise = NoiseSource(KEY)
    kept = np.bincount(
        np.concatenate([poisson_batch(20, 1.0, noise, 5) for _ in range(4000)]), minlength=20
    )
    # Five different rows of twenty vary less than independent draws would, by 15 / 19.
    statistic = ((kept - 1000) ** 2 / 1000).sum() * 19 / 15
    assert statistic < stats.chi2.ppf(1 - 1e-3, 19)
    assert len(set(kept)) > 1


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_batch_size"):
        poisson_batch(10, 0.5, NoiseSource(KEY), 0)
