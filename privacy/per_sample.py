"""Per-example gradients of what trains in a model, without gradients of the batch.

Design note: while a module that owns trainable parameters runs, they are hidden from autograd
(`requires_grad` is off), so no backward pass forms the batch's weight gradient, which nobody needs.
Its output goes through `_Tap`, an identity that in the backward pass hands the layer's input and
output gradient to us. Small gradients are written as rows into flat buffers; large ones stay outer
products ("book-keeping"): norms come from Gram matrices, and the weighted sum is formed once, when
the clip factors are known. A parameter that is used outside its module's forward is still seen by
autograd, and that is how it is noticed and refused.

Source: Bu et al. 2023 (book-keeping); Li et al. 2022 (ghost norms); Opacus 1.6.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from opacus.grad_sample.gsm_base import AbstractGradSampleHooks
from torch import Tensor, nn

from fedot.privacy.layers import coupling, gradients_of, refusal
from fedot.privacy.rows import Rows

__all__ = ["PerExampleGradients", "inexact"]


class PerExampleGradients(AbstractGradSampleHooks):  # type: ignore[misc]  # Opacus ships no types
    """Hooks on a model whose rows of a batch lie along dimension 0 everywhere.

    After `backward` it knows the `norms` of all B rows' gradients and any `weighted_sum` of them.
    P counts the values that train; `split` says which of them belong to which parameter.
    """

    def __init__(self, model: nn.Module):
        """Attach; `remove_hooks` detaches.

        Raises:
            ValueError: a parameter that trains has no exact per-example gradient in this model.
        """
        _check(model)
        super().__init__(model, batch_first=True, loss_reduction="sum")
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._names = {id(p): name for name, p in named}
        self.parameters = [p for _, p in named]
        self._rows = Rows(self.parameters)
        self._num_rows = 0
        self._norms: Tensor | None = None
        self._anchor = torch.zeros((), requires_grad=True)
        self._handles = [model.register_forward_pre_hook(self._count_rows, with_kwargs=True)]
        for module in model.modules():
            own = _own_trainable(module)
            if own:
                before, after = partial(self._hide, own), partial(self._tap, own)
                self._handles += [
                    module.register_forward_pre_hook(before),
                    module.register_forward_hook(after, always_call=True),
                ]

    def backward(self, losses: Tensor) -> None:
        """Run the backward pass of B losses, one per row.

        Args:
            losses: shape (B,); row b's depends on row b of the batch alone.

        Raises:
            ValueError: the losses are not one per row, or a parameter's gradients are not.
        """
        if losses.dim() != 1:
            raise ValueError(
                f"losses have shape {tuple(losses.shape)}; per-example gradients need one loss "
                "per row, shape (B,). Do not reduce over the batch: that ties rows together."
            )
        self.clear()
        self._num_rows = len(losses)
        for parameter in self.parameters:
            parameter.grad = None
        losses.sum().backward()
        unseen = self._rows.unseen()
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = None
                raise ValueError(
                    f"{self._names[id(parameter)]} is used outside its own module, where its "
                    "per-example gradient cannot be seen. Leave it frozen, or train without DP."
                )
            if id(parameter) in unseen:
                raise ValueError(
                    f"no gradient reached {self._names[id(parameter)]}: it would get nothing but "
                    "noise. Freeze what the loss does not depend on; with reentrant checkpointing "
                    "call enable_input_require_grads() first."
                )

    @property
    def is_empty(self) -> bool:
        """Has no backward pass run since the last `clear`?"""
        return self._rows.is_empty

    def norms(self) -> Tensor:
        """L2 norm of every row's gradient over all parameters together, shape (B,)."""
        if self._norms is None:
            self._norms = self._rows.square_norms().clamp(min=0).sqrt()
        return self._norms

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Sum over rows of weight times gradient, shape (P,).

        A row whose norm is not finite counts as zero, whatever its weight.
        """
        # NaN times a weight of 0 is still NaN, and one row must not spoil the sum.
        self._rows.erase(~self.norms().isfinite())
        return self._rows.weighted_sum(weights)

    def matrix(self) -> Tensor:
        """Every row's gradient, shape (B, P): for audits and tests, as large as it sounds."""
        one_hot = torch.eye(self._num_rows, device=self.parameters[0].device)
        return torch.stack([self._rows.weighted_sum(weights) for weights in one_hot])

    def split(self, values: Tensor) -> list[Tensor]:
        """Views on (P,) in the shapes of `parameters`."""
        return self._rows.split(values)

    def zeros(self) -> Tensor:
        """The sum over no rows at all, shape (P,)."""
        return self._rows.empty().zero_()

    def clear(self) -> None:
        """Forget the last backward pass."""
        self._rows.clear()
        self._norms = None

    def remove_hooks(self) -> None:
        """Leave the model as it was found."""
        for handle in self._handles:
            handle.remove()
        self.clear()
        for parameter in self.parameters:
            parameter.requires_grad = True

    def _count_rows(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()]
        self._num_rows = len(given[0]) if given else 1

    def _hide(self, own: dict[str, nn.Parameter], module: nn.Module, args: Any) -> Any:
        for name, parameter in own.items():
            if module._parameters[name] is not parameter:
                raise ValueError(
                    f"the {name} of a {type(module).__name__} was replaced after per-example "
                    "gradients were attached, so it would never train. Attach them last."
                )
            parameter.requires_grad = False
        (inputs,) = args
        if isinstance(module, nn.Embedding) and len(inputs) == 1:
            # Learned positions are looked up once for all rows; now each row looks up its own.
            return (inputs.expand(self._num_rows, *inputs.shape[1:]),)
        return None

    def _tap(
        self, own: dict[str, nn.Parameter], module: nn.Module, args: Any, output: Tensor | None
    ) -> Tensor | None:
        for parameter in own.values():
            parameter.requires_grad = True
        if output is None or not torch.is_grad_enabled():
            return None
        record = partial(self._record, own, module)
        tapped = _Tap.apply(output, args[0].detach(), self._anchor, record)  # type: ignore[no-untyped-call]
        return cast(Tensor, tapped)

    def _record(
        self, own: dict[str, nn.Parameter], module: nn.Module, inputs: Tensor, grad: Tensor
    ) -> None:
        if len(inputs) != self._num_rows:
            raise ValueError(
                f"a {type(module).__name__} that trains saw {len(inputs)} rows in a batch of "
                f"{self._num_rows}: it is shared by them or mixes them, and has no per-example "
                "gradient. Leave it frozen, or train without DP."
            )
        for name, gradient in gradients_of(module, inputs, grad, own).items():
            self._rows.add(own[name], gradient)


class _Tap(torch.autograd.Function):
    """Identity; its backward pass reports (input, output gradient) of the layer before it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor, record: Any) -> Tensor:
        # Saved by autograd and not in a closure, so that checkpointing can drop it.
        ctx.save_for_backward(inputs)
        ctx.record = record
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        ctx.record(inputs, grad)
        return grad, None, None, None


def _own_trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}


def inexact(model: nn.Module) -> str | None:
    """Where and why a model's gradients per example would not be exact; None if they are."""
    for name, module in model.named_modules():
        reason = refusal(module) if _own_trainable(module) else coupling(module)
        if reason:
            return f"{name}: {reason}"
    return None


def _check(model: nn.Module) -> None:
    """Refuse what has no exact per-example gradients, or ties rows together."""
    reason = inexact(model)
    if reason:
        raise ValueError(reason)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter of the model trains; set requires_grad on what is to.")
