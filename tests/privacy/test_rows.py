"""How examples' gradients are held: norms without forming a matrix."""

from __future__ import annotations

import pytest
import torch

from fedot.privacy import rows


def test_norms_from_gram_matrices_are_never_too_small_where_gradients_cancel() -> None:
    """The sum over tokens is a thousandth of its terms: float32 alone is wrong by percents."""
    rng = torch.Generator().manual_seed(0)
    left = torch.ones(64, 8, 300) + 1e-3 * torch.randn(64, 8, 300, generator=rng)
    right = torch.randn(64, 8, 200, generator=rng)
    right -= right.mean(dim=1, keepdim=True)
    exact = torch.einsum("btm,btn->bmn", left.double(), right.double()).flatten(1).norm(dim=1)
    found = rows._square_norms([rows.Outer(left, right)], {}).sqrt()
    assert (found >= exact * (1 - 1e-6)).all()
    assert (found <= 2 * exact).all()


@pytest.mark.parametrize(("large", "small"), [(1e18, 2e-23), (2e-23, 1e18)])
def test_norms_are_never_too_small_where_one_factor_is_too_small_for_its_square(
    large: float, small: float
) -> None:
    """A server that chooses the weights could make the square of one factor vanish in float32."""
    left = torch.full((2, 8, 300), small)
    right = torch.full((2, 8, 200), large)
    exact = torch.einsum("btm,btn->bmn", left.double(), right.double()).flatten(1).norm(dim=1)
    assert (exact > 1e-4).all(), "too little to tell"
    found = rows._square_norms([rows.Outer(left, right)], {}).sqrt()
    assert (found >= exact).all()


def test_a_row_without_a_gradient_has_almost_no_norm() -> None:
    """The allowance must not clip what is fine."""
    left, right = torch.zeros(2, 64, 300), torch.randn(2, 64, 200)
    assert (rows._square_norms([rows.Outer(left, right)], {}) < 1e-24).all()
