"""How examples' gradients are held: norms without forming a matrix."""

from __future__ import annotations

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
