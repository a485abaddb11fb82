"""A tiny adapter, records, and DP-SGD with known bugs planted.

Seams of the bugs, the narrowest there are: what `train_privately` is called with (noise), the names
`sequence_losses` and `poisson_batch` in `fedot.client.training` (loss, sampler), and torch's hook
before an optimizer step (clipping). Nothing inside `privacy/dp_sgd.py` is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fedot.client import training
from fedot.client.training import PrivateSettings, TrainingSettings, train_privately
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter, AdapterSpec, attach, linear_names
from fedot.privacy.noise import NoiseSource

Train = Callable[[Adapter, Sequences, TrainingSettings, PrivateSettings, NoiseSource], None]


def less_noise(ratio: float) -> Train:
    """Noise is `ratio` of what is claimed."""

    def train(adapter, records, settings, private, noise):
        less = replace(private, noise_multiplier=ratio * private.noise_multiplier)
        train_privately(adapter, records, settings, less, noise)

    return train


def per_batch_clipping(adapter, records, settings, private, noise):
    """The batch's mean gradient is clipped to C, with the noise that per-example clipping needs."""
    noise_stddev = private.noise_multiplier * private.l2_clip_norm
    noise_stddev /= private.sampling_prob * len(records)

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if isinstance(optimizer, DPOptimizer):
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for grad in grads:
            grad.mul_((private.l2_clip_norm / (norm + 1e-6)).clamp(max=1))
            grad.add_(noise_stddev * torch.from_numpy(noise.normal(grad.numel())).view_as(grad))

    handle = register_optimizer_step_pre_hook(clip)
    try:
        unbounded = PrivateSettings(private.sampling_prob, 0.0, 1e9)
        train_privately(adapter, records, settings, unbounded, noise)
    finally:
        handle.remove()


def token_mean_losses(model, batch):
    """A mean over the batch's tokens, dealt out to the rows that they came from."""
    ids, learned = batch.ids, batch.learned[:, 1:]
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * learned).sum(dim=1) / learned.sum()


def with_loss(loss: Callable[..., torch.Tensor]) -> Train:
    def train(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "sequence_losses", loss)
            train_privately(*arguments)

    return train


class Shuffled:
    """Every record once an epoch, in batches of one size: not Poisson."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.queue = np.empty(0, dtype=np.int64)

    def __call__(
        self,
        num_records: int,
        sampling_prob: float,
        noise: NoiseSource,
        max_batch_size: int | None = None,
    ) -> np.ndarray:
        size = max(1, round(sampling_prob * num_records))
        if len(self.queue) < size:
            self.queue = np.concatenate([self.queue, self.rng.permutation(num_records)])
        rows, self.queue = np.unique(self.queue[:size]), self.queue[size:]
        return rows


def fixed_size(
    num_records: int,
    sampling_prob: float,
    noise: NoiseSource,
    max_batch_size: int | None = None,
) -> np.ndarray:
    """A fresh draw without replacement each step: the right rate, but not Poisson."""
    size = max(1, round(sampling_prob * num_records))
    return np.sort(np.argsort(noise.uniform(num_records))[:size])


def with_sampler(make_sampler: Callable[[], Callable[..., np.ndarray]]) -> Train:
    def train(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "poisson_batch", make_sampler())
            train_privately(*arguments)

    return train


# One shuffled order for the whole of a run, hence made anew for each.
PLANTED: dict[str, Train] = {
    "nothing": train_privately,
    "no noise": less_noise(0.0),
    "noise / 4": less_noise(0.25),
    "batch clipping": per_batch_clipping,
    "token-mean loss": with_loss(token_mean_losses),
    "shuffled epochs": with_sampler(Shuffled),
    "batches of one size": with_sampler(lambda: fixed_size),
}


@pytest.fixture
def planted() -> dict[str, Train]:
    """`train_privately` with a bug, by its name."""
    return PLANTED


MakeAdapter = Callable[..., Adapter]


@pytest.fixture
def make_adapter() -> MakeAdapter:
    """`make_adapter(model, "lora" or "blocks" or "full")`: one whose LoRA is not zero."""
    return tuned_adapter


def tuned_adapter(model: Any, kind: str = "lora") -> Adapter:
    blocks = (0, 3) if kind != "full" else (0, 1, 2, 3)
    targets = linear_names(model, blocks) if kind == "lora" else ()
    adapter = attach(model, AdapterSpec(kind, blocks, 4, 8.0, targets, seed=3), range(4))
    for name, parameter in adapter.parameters.items():
        if "lora_B" in name:  # at zero, lora_A would have no gradient
            nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
    return adapter


@pytest.fixture
def adapter(tiny_llama: Any) -> Adapter:
    return tuned_adapter(tiny_llama)


@pytest.fixture
def records() -> Sequences:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 300, (40, 24), generator=rng)
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    return Sequences(ids, learned)
