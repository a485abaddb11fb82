"""DP-SGD on Opacus: per-example gradients, clipping, and noise that cannot be guessed.

Guarantees of one `step` (unit: example, one row of the batch):
    Every row's gradient is bounded to norm C over all parameters together, the sum gets noise of
    stddev z * C, and the divisor is the *expected* batch size, so that it tells nothing. An empty
    batch releases noise and makes a step like any other.

Source: Abadi et al. 2016 (DP-SGD); Opacus 1.6 (`GradSampleHooks`, `DPOptimizer`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedot.privacy.noise import NoiseSource

__all__ = ["PrivateOptimizer", "per_example_gradients", "private_step"]


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' optimizer with noise from a `NoiseSource`, drawn in float64."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        l2_clip_norm: float,
        noise_multiplier: float,
        expected_batch_size: float,
        noise: NoiseSource,
    ):
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=l2_clip_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._noise = noise

    def clip_and_accumulate(self) -> None:
        """Clip each row and add it up; a row whose gradient is not finite counts as zero."""
        for parameter in self.params:
            # Under autocast they come in bfloat16, in which a clipped norm passes C by up to 1 %.
            parameter.grad_sample = parameter.grad_sample.float()
        finite = _finite_rows(self.grad_samples)
        for parameter in self.params:
            # NaN times a clip factor of 0 is still NaN, and one row must not spoil the sum.
            parameter.grad_sample[~finite] = 0.0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Set every `grad` to the clipped sum plus noise of stddev z * C."""
        noise_stddev = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            summed = parameter.summed_grad
            drawn = torch.from_numpy(self._noise.normal(summed.numel())).view(summed.shape)
            noisy = summed.double() + noise_stddev * drawn.to(summed.device)
            parameter.grad = noisy.to(parameter.dtype)


@contextmanager
def per_example_gradients(model: nn.Module) -> Iterator[None]:
    """While open, every backward pass through `model` fills `grad_sample` of what trains.

    The loss must be a *sum* of per-example losses, with examples along dimension 0 everywhere.

    Raises:
        ValueError: a parameter that trains has no per-example gradients in this model.
    """
    _refuse_shared_positions(model)
    model.train()
    hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=True)
    try:
        with warnings.catch_warnings():
            # The first block's input needs no gradient; that is meant, and saves its cost.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.remove_hooks()
        for parameter in model.parameters():
            for name in ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
        model.eval()


def private_step(
    optimizer: PrivateOptimizer, micro_batches: Sequence[Callable[[], Tensor]]
) -> None:
    """One DP-SGD step over a batch that comes in parts; no part at all is an empty batch.

    Args:
        optimizer: over exactly the parameters that train.
        micro_batches: each returns the sum of its rows' losses, a scalar.
    """
    for number, loss_of in enumerate(micro_batches, start=1):
        loss_of().backward()
        optimizer.signal_skip_step(do_skip=number < len(micro_batches))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if not micro_batches:
        for parameter in optimizer.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _refuse_shared_positions(model: nn.Module) -> None:
    """Learned positions are looked up once for the whole batch, so they have no batch dimension."""
    for name, module in model.named_modules():
        position = "wpe" in name or "position" in name
        if position and any(p.requires_grad for p in module.parameters(recurse=False)):
            raise ValueError(
                f"{name} is learned and shared by all rows of a batch; it has no per-example "
                "gradient. Leave it frozen, or train without DP."
            )


def _finite_rows(grad_samples: Sequence[Tensor]) -> Tensor:
    """Which rows are finite in every parameter, shape (B,), bool."""
    rows = [g.flatten(start_dim=1).isfinite().all(dim=1) for g in grad_samples]
    return torch.stack(rows).all(dim=0)
