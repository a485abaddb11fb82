"""Top-k and its gaps."""

from __future__ import annotations

import numpy as np
import pytest

from fedot.compression.sparsify import gaps_of, indices_of, largest, max_gap_bytes, num_kept


def test_the_largest_are_kept_whatever_their_sign() -> None:
    values = np.array([0.1, -5.0, 0.0, 3.0, -0.2], dtype=np.float32)
    assert largest(values, 2).tolist() == [1, 3]
    assert largest(values, 5).tolist() == [0, 1, 2, 3, 4]


def test_of_equal_values_the_first_are_kept() -> None:
    values = np.array([1.0, -2.0, 1.0, -1.0, 2.0, 1.0], dtype=np.float32)
    assert largest(values, 4).tolist() == [0, 1, 2, 4]
    assert largest(np.zeros(9, dtype=np.float32), 3).tolist() == [0, 1, 2]


def test_top_k_is_what_sorting_finds() -> None:
    rng = np.random.default_rng(0)
    for num_values in (1, 2, 1000, 50_000):
        values = rng.standard_normal(num_values, dtype=np.float32).round(2)
        for k in {1, num_values // 10 or 1, num_values}:
            order = np.argsort(-np.abs(values), kind="stable")[:k]
            assert largest(values, k).tolist() == sorted(order.tolist())


@pytest.mark.parametrize(
    ("num_values", "ratio", "k"), [(1, 0.01, 1), (30, 0.1, 3), (10, 0.25, 3), (7, 1.0, 7)]
)
def test_k_is_rounded_half_up_and_never_zero(num_values: int, ratio: float, k: int) -> None:
    assert num_kept(num_values, ratio) == k


def test_gaps_by_hand() -> None:
    assert gaps_of(np.array([0, 1, 5, 260, 515, 771])).tolist() == [0, 0, 3, 254, 254, 255, 0]
    assert gaps_of(np.array([255])).tolist() == [255, 0]
    assert gaps_of(np.array([600])).tolist() == [255, 255, 90]


def test_gaps_lead_back_to_the_positions_and_keep_to_their_bound() -> None:
    rng = np.random.default_rng(1)
    for num_values, k in [(1, 1), (255, 1), (256, 1), (256, 256), (100_000, 10), (100_000, 10_000)]:
        indices = np.sort(rng.choice(num_values, k, replace=False))
        gaps = gaps_of(indices)
        assert k <= gaps.size <= max_gap_bytes(num_values, k)
        assert indices_of(gaps, k, num_values).tolist() == indices.tolist()
    worst = np.array([99_999])
    assert gaps_of(worst).size == max_gap_bytes(100_000, 1)
