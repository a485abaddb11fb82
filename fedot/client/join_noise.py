"""Noise where the emulator's middle meets the top blocks, so that adapters do not lean on it.

A tuned adapter has to work with the full middle, which it never sees. Without noise it also learns
the emulator's own errors, and what it gains by them is lost when it is plugged in. Noise about as
large as the emulator's distance from the full middle makes those errors worthless.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedot.models.adapters import Adapter
from fedot.privacy.noise import NoiseSource

__all__ = ["Normal", "from_noise_source", "join_noise", "seeded"]

Normal = Callable[[torch.Size], Tensor]
"""Standard normals of a shape, float32 on the CPU."""


def seeded(rng: torch.Generator) -> Normal:
    """Reproducible, for training without DP."""
    return lambda shape: torch.randn(shape, generator=rng)


def from_noise_source(noise: NoiseSource) -> Normal:
    """For training with DP.

    One record more would move the rows behind it to other numbers of the stream. Only numbers that
    nobody can foresee make that harmless: then each row's noise is as good as any other.
    """
    return lambda shape: torch.from_numpy(noise.normal(math.prod(shape))).float().view(shape)


@contextmanager
def join_noise(adapter: Adapter, scale: float, normal: Normal) -> Iterator[None]:
    """While open, what the top blocks get is noised in every forward pass.

    Args:
        adapter: whose model runs; without a join (nothing frozen below what trains) nothing is
            noised.
        scale: noise stddev over the root mean square of each token's hidden state.
        normal: where the noise comes from.
    """
    if scale == 0 or adapter.join is None:
        yield
        return

    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        # Blocks return a tensor in some versions of transformers and a tuple in others.
        hidden = output[0] if isinstance(output, tuple) else output
        rms = hidden.detach().square().mean(dim=-1, keepdim=True).sqrt()
        noised = hidden + scale * rms * normal(hidden.shape).to(hidden)
        return (noised, *output[1:]) if isinstance(output, tuple) else noised

    handle = adapter.join.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
