"""One training step, four ways: without DP, ours, Opacus' hooks, Opacus' ghost clipping.

Each method has its own copy of the same model and trains on the same batch. All clip to the same
norm and divide by the batch size.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleHooksFastGradientClipping,
)
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from fedot.client.training import sequence_losses
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter, AdapterSpec, attach, linear_names
from fedot.privacy.dp_sgd import PrivateOptimizer, per_example_gradients, private_step
from fedot.privacy.noise import KEY_BYTES, NoiseSource

CLIP, NOISE_MULTIPLIER = 0.5, 1.0


@dataclass(frozen=True)
class Shape:
    """A model's shape and its batch."""

    family: str
    width: int
    blocks: int
    heads: int
    vocabulary: int
    batch_size: int

    def adapter(self, what: str, num_tokens: int, device: str) -> Adapter:
        """A fresh model of this shape with `what` training: `lora-8`, `lora-32` or `blocks`."""
        common = {"vocab_size": self.vocabulary, "use_cache": False}
        if self.family == "llama":
            config = LlamaConfig(
                hidden_size=self.width,
                # As in Llama: 8/3 of the width, in whole sixteens.
                intermediate_size=-(-8 * self.width // 48) * 16,
                num_hidden_layers=self.blocks,
                num_attention_heads=self.heads,
                max_position_embeddings=num_tokens,
                **common,
            )
        else:
            config = GPT2Config(
                n_embd=self.width,
                n_layer=self.blocks,
                n_head=self.heads,
                n_positions=num_tokens,
                **common,
            )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        every = tuple(range(self.blocks))
        kind, _, rank = what.partition("-")
        targets = linear_names(model, every) if kind == "lora" else ()
        spec = AdapterSpec(kind, every, int(rank or 8), 16.0, targets, seed=1)
        adapter = attach(model, spec, every)
        for name, parameter in adapter.parameters.items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        adapter.model.to(device).train()
        return adapter

    def batch(self, num_tokens: int) -> Sequences:
        """The same made-up tokens every time."""
        rng = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocabulary, (self.batch_size, num_tokens), generator=rng)
        return Sequences(ids, torch.ones_like(ids, dtype=torch.bool))


class TimedNoise(NoiseSource):
    """Knows how long a step waits for its numbers: the rest is drawn beside other work."""

    waited_s = 0.0

    def normal(self, num: int) -> NDArray[np.float64]:
        """As `NoiseSource.normal`."""
        started = time.perf_counter()
        drawn = super().normal(num)
        self.waited_s += time.perf_counter() - started
        return drawn


@dataclass
class Method:
    """One way of making steps."""

    step: Callable[[], None]
    optimizer: torch.optim.Optimizer
    adapter: Adapter
    num_parameters: int
    stay_open: ExitStack = field(default_factory=ExitStack)
    noise: TimedNoise | None = None


def adamw(adapter: Adapter) -> torch.optim.AdamW:
    return torch.optim.AdamW(adapter.parameters.values(), lr=1e-4, weight_decay=0.0)


def no_dp(adapter: Adapter, batch: Sequences) -> Method:
    optimizer = adamw(adapter)

    def step() -> None:
        sequence_losses(adapter.model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Method(step, optimizer, adapter, adapter.num_parameters)


def ours(adapter: Adapter, batch: Sequences) -> Method:
    inner = adamw(adapter)
    noise = TimedNoise(os.urandom(KEY_BYTES))
    stay_open = ExitStack()
    gradients = stay_open.enter_context(per_example_gradients(adapter.model))
    optimizer = PrivateOptimizer(
        inner,
        gradients,
        l2_clip_norm=CLIP,
        noise_multiplier=NOISE_MULTIPLIER,
        expected_batch_size=len(batch),
        noise=noise,
    )

    def step() -> None:
        private_step(optimizer, [lambda: sequence_losses(adapter.model, batch)])

    return Method(step, inner, adapter, adapter.num_parameters, stay_open, noise)


def opacus_hooks(adapter: Adapter, batch: Sequences) -> Method:
    inner = adamw(adapter)
    GradSampleHooks(adapter.model, batch_first=True, loss_reduction="sum", strict=True)
    optimizer = DPOptimizer(
        inner,
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP,
        expected_batch_size=len(batch),
        loss_reduction="mean",
    )

    def step() -> None:
        sequence_losses(adapter.model, batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Method(step, inner, adapter, adapter.num_parameters)


def opacus_ghost(adapter: Adapter, batch: Sequences) -> Method:
    inner = adamw(adapter)
    hooks = GradSampleHooksFastGradientClipping(
        adapter.model,
        batch_first=True,
        loss_reduction="sum",
        strict=True,
        max_grad_norm=CLIP,
        use_ghost_clipping=True,
    )
    optimizer = DPOptimizerFastGradientClipping(
        inner,
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP,
        expected_batch_size=len(batch),
        loss_reduction="mean",
    )

    def step() -> None:
        losses = sequence_losses(adapter.model, batch)
        losses.sum().backward(retain_graph=True)
        optimizer.zero_grad(set_to_none=True)
        factors = hooks.get_clipping_coef()
        hooks.disable_hooks()
        (factors * losses).sum().backward()
        hooks.enable_hooks()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Method(step, inner, adapter, adapter.num_parameters)


METHODS: dict[str, Callable[[Adapter, Sequences], Method]] = {
    "no DP": no_dp,
    "ours": ours,
    "Opacus hooks": opacus_hooks,
    "Opacus ghost": opacus_ghost,
}


def make(name: str, shape: Shape, what: str, num_tokens: int, device: str) -> Method:
    """A method on its own model, warmed up by two steps."""
    # Opacus' hooks on a first layer whose input needs no gradient: meant, and saves its cost.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    adapter = shape.adapter(what, num_tokens, device)
    method = METHODS[name](adapter, shape.batch(num_tokens))
    for _ in range(2):
        method.step()
    return method


def resident_bytes(method: Method) -> int:
    """Weights, and what AdamW keeps."""
    tensors: list[Tensor] = list(method.adapter.model.parameters())
    tensors += [
        v for s in method.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)
    ]
    return sum(t.nbytes for t in tensors)
