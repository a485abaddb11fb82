"""Adapters to put on the tiny models, and one input for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedot.models.adapters import Adapter, AdapterSpec, linear_names


@pytest.fixture
def ids() -> Tensor:
    """Shape (B, T) = (3, 12)."""
    return torch.randint(2, 300, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logits_of(ids: Tensor) -> Callable[[Any], Tensor]:
    def logits(model: Any) -> Tensor:
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=False).logits

    return logits


@pytest.fixture
def spec_for() -> Callable[..., AdapterSpec]:
    """`spec_for(model, "lora" | "blocks" | "full", blocks)`; both end blocks by default."""

    def spec(model: Any, kind: str, blocks: tuple[int, ...] | None = None) -> AdapterSpec:
        depth = model.config.num_hidden_layers
        blocks = (0, depth - 1) if blocks is None else blocks
        if kind == "full":
            blocks = tuple(range(depth))
        targets = linear_names(model, blocks) if kind == "lora" else ()
        return AdapterSpec(kind=kind, blocks=blocks, rank=2, alpha=4.0, targets=targets)

    return spec


@pytest.fixture
def tune() -> Callable[[Adapter, int], None]:
    """Move every tensor of an adapter, LoRA's zero B too, as training would."""

    def move(adapter: Adapter, seed: int = 3) -> None:
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter.parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=rng)

    return move
