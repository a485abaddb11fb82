"""Records, adapters on tiny models, and what autograd says about single examples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedot.client.training import sequence_losses
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter, AdapterSpec, attach, linear_names


@pytest.fixture
def records() -> Sequences:
    """Six records of random tokens, one of them short."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 300, (6, 12), generator=rng)
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    learned[1, 5:] = False
    return Sequences(ids, learned)


@pytest.fixture
def adapter_on() -> Callable[[nn.Module, str], Adapter]:
    """`adapter_on(model, "lora" or "blocks" or "full")`, on the end blocks."""

    def make(model: nn.Module, kind: str) -> Adapter:
        blocks = (0, 3) if kind != "full" else (0, 1, 2, 3)
        targets = linear_names(model, blocks) if kind == "lora" else ()
        adapter = attach(model, AdapterSpec(kind, blocks, 4, 8.0, targets, seed=3), range(4))
        for name, parameter in adapter.parameters.items():
            if "lora_B" in name:  # at zero, lora_A would have no gradient to compare
                nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
        return adapter

    return make


@pytest.fixture
def one_by_one() -> Callable[..., torch.Tensor]:
    """Gradients of every record alone, (B, P), in the order of the model's parameters."""

    def compute(
        model: nn.Module,
        records: Sequences,
        losses: Callable[[nn.Module, Sequences], torch.Tensor] = sequence_losses,
    ) -> torch.Tensor:
        model.train()  # bitsandbytes computes something else in eval mode
        trained = [p for p in model.parameters() if p.requires_grad]
        rows = []
        for row in range(len(records)):
            total = losses(model, records.take([row])).sum()
            grads = torch.autograd.grad(total, trained)
            rows.append(torch.cat([g.flatten() for g in grads]))
        model.eval()
        return torch.stack(rows)

    return compute
