"""DP-SGD: per-example gradients, clipping, and noise that cannot be guessed.

Guarantees of one `private_step` (unit: example, one row of the batch):
    Every row's gradient is bounded to norm C over all parameters together, the sum gets noise of
    stddev z * C, and the divisor is the *expected* batch size, so that it tells nothing. An empty
    batch releases noise and makes a step like any other.

Source: Abadi et al. 2016 (DP-SGD); Opacus 1.6 (`DPOptimizer`, its skip queue and step hook).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedot.privacy.clipping import Bounded, add_noise, clipped_sum
from fedot.privacy.noise import NoiseSource
from fedot.privacy.per_sample import PerExampleGradients

__all__ = ["PrivateOptimizer", "per_example_gradients", "private_step"]


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' optimizer on `PerExampleGradients`: one flat sum, one draw of a `NoiseSource`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        gradients: PerExampleGradients,
        *,
        l2_clip_norm: float,
        noise_multiplier: float,
        expected_batch_size: float,
        noise: NoiseSource,
    ):
        """Wrap an optimizer over exactly the parameters that `gradients` sees.

        Raises:
            ValueError: a parameter is on one side only: it would never move, or move unnoised.
        """
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=l2_clip_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        if {id(p) for p in self.params} != {id(p) for p in gradients.parameters}:
            raise ValueError(
                "the optimizer's parameters are not those that train in the model. Make it from "
                "exactly those, after the model is on its device."
            )
        self.gradients = gradients
        self._noise = noise
        self._summed: Bounded | None = None
        self._noisy = Tensor()

    def draw_ahead(self) -> None:
        """Begin with this step's noise while its gradients are computed: it depends on no data."""
        if self.noise_multiplier > 0:
            self._noise.draw_ahead(sum(p.numel() for p in self.gradients.parameters))

    def clip_and_accumulate(self) -> None:
        """Clip each row and add it up; a row whose gradient is not finite counts as zero."""
        summed = clipped_sum(self.gradients, self.max_grad_norm)
        self._summed = summed if self._summed is None else self._summed.plus_other_rows(summed)

    def add_noise(self) -> None:
        """The sum plus noise of stddev z * C."""
        assert self._summed is not None
        self._noisy = add_noise(self._summed, self.noise_multiplier, self._noise)

    def scale_grad(self) -> None:
        """Divide by the expected batch size, whatever was drawn; set every `grad`."""
        self._noisy /= self.expected_batch_size
        for parameter, grad in zip(
            self.gradients.parameters, self.gradients.split(self._noisy), strict=True
        ):
            parameter.grad = grad.to(parameter.dtype)

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """All that happens before the wrapped optimizer's step; False: there is to be none yet."""
        self.clip_and_accumulate()
        self._is_last_step_skipped = self._check_skip_next_step()
        if self._is_last_step_skipped:
            return False
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        return True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the last backward pass and, after a step, the sum."""
        self.gradients.clear()
        if not self._is_last_step_skipped:
            self._summed, self._noisy = None, Tensor()
        self.original_optimizer.zero_grad(set_to_none)


@contextmanager
def per_example_gradients(model: nn.Module) -> Iterator[PerExampleGradients]:
    """While open, `backward` of what it yields finds per-example gradients of what trains.

    Examples must lie along dimension 0 everywhere in the model.

    Raises:
        ValueError: a parameter that trains has no exact per-example gradients in this model.
    """
    # First: whether a batch norm ties rows together depends on it.
    model.train()
    gradients = PerExampleGradients(model)
    try:
        yield gradients
    finally:
        gradients.cleanup()
        model.eval()


def private_step(
    optimizer: PrivateOptimizer, micro_batches: Sequence[Callable[[], Tensor]]
) -> None:
    """One DP-SGD step over a batch that comes in parts; no part at all is an empty batch.

    Args:
        optimizer: over exactly the parameters that train.
        micro_batches: each returns its rows' own losses, shape (B,).
    """
    optimizer.draw_ahead()
    for number, losses_of in enumerate(micro_batches, start=1):
        optimizer.gradients.backward(losses_of())
        optimizer.signal_skip_step(do_skip=number < len(micro_batches))
        optimizer.step()
        optimizer.zero_grad()
    if not micro_batches:
        optimizer.step()
        optimizer.zero_grad()
