"""Adam over rounds: by hand, by torch's own, and with halves that take turns."""

from __future__ import annotations

import torch

from fedot.aggregation.server_optimizers import Moments, adam_step


def test_it_is_torchs_adam() -> None:
    rng = torch.Generator().manual_seed(0)
    value = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    reference = torch.optim.Adam([value], lr=0.1, betas=(0.9, 0.99), eps=1e-12)
    ours, moments = torch.zeros(7, dtype=torch.float64), Moments.none()
    for _ in range(5):
        change = torch.randn(7, generator=rng, dtype=torch.float64)
        value.grad = -change
        reference.step()
        step, moments = adam_step({"w": change}, moments, 0.1)
        ours += step["w"]
    # Moments are kept in float32: 2^-24 relative, over five steps of 0.1.
    torch.testing.assert_close(ours, value.detach(), rtol=0, atol=1e-6)


def test_the_same_change_again_and_again_moves_by_the_rate() -> None:
    moments = Moments.none()
    for _ in range(4):
        step, moments = adam_step({"w": torch.tensor([3e-5, -2.0])}, moments, 0.03)
        torch.testing.assert_close(
            step["w"].abs(), torch.full((2,), 0.03).double(), rtol=1e-5, atol=0
        )
        assert step["w"].sign().tolist() == [1.0, -1.0]


def test_zero_change_moves_nothing() -> None:
    step, _ = adam_step({"w": torch.zeros(3)}, Moments.none(), 1.0)
    assert not step["w"].any()


def test_a_half_without_a_turn_keeps_its_moments() -> None:
    one, two = {"A": torch.ones(2)}, {"B": torch.ones(2)}
    _, after_a = adam_step(one, Moments.none(), 0.1)
    step, after_b = adam_step(two, after_a, 0.1)
    assert step.keys() == {"B"}
    assert torch.equal(after_b.first["A"], after_a.first["A"])
    assert after_b.counts == {"A": 1, "B": 1}
