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
