"""Local training at a site: some steps of an optimizer on an adapter, with DP-SGD or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedot.client.join_noise import from_noise_source, join_noise, seeded
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.privacy.dp_sgd import PrivateOptimizer, per_example_gradients, private_step
from fedot.privacy.noise import NoiseSource
from fedot.privacy.sampling import poisson_batch

__all__ = ["PrivateSettings", "TrainingSettings", "sequence_losses", "train", "train_privately"]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What one round of local training does."""

    num_steps: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    join_noise: float = 0.0
    autocast: bool = False
    """Compute in bfloat16 while parameters stay float32."""


@dataclass(frozen=True, slots=True)
class PrivateSettings:
    """How DP-SGD bounds and noises: q, z and C.

    Attributes:
        max_batch_size: most records in a step; accounted as `TruncatedSubsampledGaussian`.
    """

    sampling_prob: float
    noise_multiplier: float
    l2_clip_norm: float
    max_batch_size: int | None = None


def sequence_losses(model: nn.Module, batch: Sequences) -> Tensor:
    """Each sequence's own mean loss over its learned tokens, shape (B,), nats per token.

    A mean over the batch's tokens would tie every sequence's gradient to its neighbours' lengths.
    """
    device = next(model.parameters()).device
    ids, learned = batch.ids.to(device), batch.learned.to(device)[:, 1:]
    # Padding is on the right and attention looks left only, so no mask is needed.
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * learned).sum(dim=1) / learned.sum(dim=1).clamp(min=1)


def train(
    adapter: Adapter, records: Sequences, settings: TrainingSettings, rng: torch.Generator
) -> None:
    """Train in place without privacy: shuffled batches, seeded order."""
    optimizer = _optimizer(adapter, settings)
    adapter.model.train()
    batches = _shuffled(len(records), settings.batch_size, rng)
    with join_noise(adapter, settings.join_noise, seeded(rng)):
        for _, rows in zip(range(settings.num_steps), batches, strict=False):
            for part in rows.split(settings.micro_batch_size):
                with _autocast(adapter.model, settings):
                    losses = sequence_losses(adapter.model, records.take(part))
                (losses.sum() / len(rows)).backward()
            nn.utils.clip_grad_norm_(adapter.trained.values(), max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    adapter.model.eval()


def train_privately(
    adapter: Adapter,
    records: Sequences,
    settings: TrainingSettings,
    private: PrivateSettings,
    noise: NoiseSource,
) -> None:
    """Train in place with DP-SGD; the unit of privacy is one sequence of `records`.

    Guarantees:
        `settings.num_steps` steps of the Poisson-sampled Gaussian mechanism with q =
        `private.sampling_prob` and z = `private.noise_multiplier`, truncated where
        `private.max_batch_size` is set, on every tensor that trains.

    Raises:
        ValueError: something trains that would be neither clipped nor noised.
    """
    _refuse_unnoised(adapter)

    def losses_of(part: Tensor) -> Tensor:
        with _autocast(adapter.model, settings):
            return sequence_losses(adapter.model, records.take(part))

    top_noise = join_noise(adapter, settings.join_noise, from_noise_source(noise))
    with per_example_gradients(adapter.model) as gradients, top_noise:
        optimizer = PrivateOptimizer(
            _optimizer(adapter, settings),
            gradients,
            l2_clip_norm=private.l2_clip_norm,
            noise_multiplier=private.noise_multiplier,
            expected_batch_size=private.sampling_prob * len(records),
            noise=noise,
        )
        for _ in range(settings.num_steps):
            drawn = poisson_batch(
                len(records), private.sampling_prob, noise, private.max_batch_size
            )
            rows = torch.from_numpy(drawn)
            parts = rows.split(settings.micro_batch_size) if len(rows) else ()
            micro_batches: list[Callable[[], Tensor]] = [partial(losses_of, part) for part in parts]
            private_step(optimizer, micro_batches)


def _optimizer(adapter: Adapter, settings: TrainingSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            adapter.trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(
        adapter.trained.values(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.99),
    )


def _refuse_unnoised(adapter: Adapter) -> None:
    """A part that trains on the records without noise spoils the claim for all that is sent.

    What is sent is computed with it in the next step (FedSA-LoRA keeps B so), and a model that
    holds it is shown in the end.
    """
    noised = {id(parameter) for parameter in adapter.trained.values()}
    for name, parameter in adapter.model.named_parameters():
        if parameter.requires_grad and id(parameter) not in noised:
            raise ValueError(
                f"{name} trains but is no part of what is clipped and noised; a local part without "
                "noise and a DP claim exclude each other. Freeze it, or train without DP."
            )


def _autocast(model: nn.Module, settings: TrainingSettings) -> torch.autocast | nullcontext[None]:
    if not settings.autocast:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16)


def _shuffled(num: int, batch_size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Batches of row numbers for ever, every row once an epoch."""
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < min(batch_size, num):
            queue = torch.cat([queue, torch.randperm(num, generator=rng)])
        yield queue[: min(batch_size, num)]
        queue = queue[min(batch_size, num) :]
