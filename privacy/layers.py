"""How one layer's input and output gradient become its parameters' gradients, per example.

A parameter's gradient in example b is either small enough to be a row by itself (biases, norms) or
a sum of outer products over tokens, which need not be formed to know its norm.

Design note: only layers in `LAYERS` are known to be exact; everything else is refused, by
`refusal`, before anything is computed. Types are compared exactly, because a subclass may compute
something else.

Source: Goodfellow 2015 (outer products); Li et al. 2022 (norms without gradients, one-hot inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from transformers.pytorch_utils import Conv1D

__all__ = ["Outer", "coupling", "gradients_of", "refusal"]


@dataclass(frozen=True, slots=True)
class Outer:
    """Gradients of one (M, N) matrix: in example b, the sum over t of left[b, t] x right[b, t].

    Attributes:
        left: (B, T, M); or (B, T) whole numbers, each for a one-hot row.
        right: (B, T, N).
    """

    left: Tensor
    right: Tensor

    @property
    def is_one_hot(self) -> bool:
        """Does `left` hold numbers of rows?"""
        return self.left.dim() == 2

    @property
    def widths(self) -> tuple[int, int]:
        """M (1 for whole numbers, whose products are exact) and N."""
        return 1 if self.is_one_hot else self.left.shape[2], self.right.shape[2]

    def write(self, slot: Tensor, is_first: bool) -> None:
        """Form the gradients in `slot`, (B, M, N), or add them to what is there."""
        if self.is_one_hot:
            if is_first:
                slot.zero_()
            examples = torch.arange(len(slot), device=slot.device)[:, None].expand_as(self.left)
            slot.index_put_((examples, self.left), self.right, accumulate=True)
        elif is_first:
            torch.bmm(self.left.transpose(1, 2), self.right, out=slot)
        else:
            slot.baddbmm_(self.left.transpose(1, 2), self.right)

    def write_weighted_sum(
        self, weighted: Callable[[Tensor], Tensor], into: Tensor, is_first: bool
    ) -> None:
        """Write the sum over examples of weight times gradient to `into`, (M, N), or add it.

        Args:
            weighted: (B, T, N) -> the same, each example times its weight.
            into: (M, N).
            is_first: whether what is there is overwritten.
        """
        left, right = self.left, self.right
        if self.is_one_hot:
            if is_first:
                into.zero_()
            into.index_add_(0, left.flatten(), weighted(right).flatten(end_dim=1))
            return
        # The narrower of the two: less to write.
        if left.shape[2] < right.shape[2]:
            left = weighted(left)
        else:
            right = weighted(right)
        left, right = left.flatten(end_dim=1).t(), right.flatten(end_dim=1)
        if is_first:
            torch.mm(left, right, out=into)
        else:
            into.addmm_(left, right)

    def without(self, examples: Tensor) -> Outer:
        """The same with some examples' gradients zero, also where they are not finite."""
        right = self.right.masked_fill(examples[:, None, None], 0.0)
        if self.is_one_hot:
            return Outer(self.left, right)
        return Outer(self.left.masked_fill(examples[:, None, None], 0.0), right)


Gradients = dict[str, Outer | Tensor]
"""By parameter name: outer products, or rows of shape (B, N)."""


def gradients_of(
    module: nn.Module, inputs: Tensor, grad_output: Tensor, wanted: Collection[str]
) -> Gradients:
    """Per-example gradients of a layer's own parameters from one call of it.

    Args:
        module: one that `refusal` lets pass.
        inputs: what it was given, (B, ..., D), or (B, ...) row numbers for an embedding.
        grad_output: of the summed losses by its output, (B, ..., D').
        wanted: names of its parameters that train.
    """
    if not inputs.is_floating_point():
        inputs = inputs.reshape(len(inputs), -1)
    else:
        inputs = _as_sequence(inputs)
    return _layer(module)(module, inputs, _as_sequence(grad_output), wanted)


def refusal(module: nn.Module) -> str | None:
    """Why a module's own trainable parameters cannot have exact gradients; None if they can."""
    known = type(module) in LAYERS or (_is_called_rms_norm(module) and _is_rms_norm(module))
    if not known:
        return (
            f"{type(module).__name__} holds parameters that train, and no exact per-example "
            "gradient of it is known (so it is with IA3, DoRA, VeRA and LoRA on embeddings). "
            "Train LoRA on linear layers, whole blocks, or without DP."
        )
    odd = ("max_norm", "scale_grad_by_freq", "sparse")
    if isinstance(module, nn.Embedding) and any(getattr(module, name) for name in odd):
        return f"an embedding with one of {', '.join(odd)} ties examples to each other. Unset it."
    return None


def coupling(module: nn.Module) -> str | None:
    """Why a module, trainable or not, lets one row of a batch change another's; None if it cannot.

    Clipping bounds what a row adds to the sum. What it changes in its neighbours' gradients would
    come on top, unbounded.
    """
    name = type(module).__name__
    if name in PROMPTS and any(p.requires_grad for p in module.parameters()):
        return (
            f"{name} is looked up once for the whole batch, which would count as one example. "
            "Train LoRA on linear layers, whole blocks, or without DP."
        )
    if isinstance(module, _NormBase) and (module.training or not module.track_running_stats):
        return f"{name} takes its statistics over the batch, which ties rows together. Freeze them."
    threshold = getattr(getattr(module, "state", None), "threshold", 0.0)
    if name == "Linear8bitLt" and threshold:
        return (
            f"llm_int8_threshold is {threshold:g}; with it, large values of one row decide how "
            "other rows are rounded. Load the model with llm_int8_threshold=0."
        )
    of_length = [kind for kind in _rope_types(module) if kind not in ROPE_TYPES]
    if of_length:
        return (
            f"its rotary positions are {of_length[0]!r}, which may depend on the longest row of "
            f"the batch. Use one of {', '.join(ROPE_TYPES)}, or train without DP."
        )
    return None


def _rope_types(module: nn.Module) -> list[str]:
    """Of a model's rotary positions; some have one for every type of layer."""
    found = getattr(module, "rope_type", None)
    kinds = found.values() if isinstance(found, dict) else [found]
    return [kind for kind in kinds if isinstance(kind, str)]


def _as_sequence(x: Tensor) -> Tensor:
    """(B, ..., D) -> (B, T, D), in float32 at least: clip factors are no better than this."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _linear(m: nn.Module, x: Tensor, g: Tensor, wanted: Collection[str]) -> Gradients:
    found: Gradients = {}
    if "weight" in wanted:
        found["weight"] = Outer(g, x)
    if "bias" in wanted:
        found["bias"] = g.sum(dim=1)
    return found


def _conv1d(m: nn.Module, x: Tensor, g: Tensor, wanted: Collection[str]) -> Gradients:
    """GPT-2's linear layer, whose weight is (in, out)."""
    found = _linear(m, x, g, wanted)
    if "weight" in wanted:
        found["weight"] = Outer(x, g)
    return found


def _embedding(m: nn.Module, ids: Tensor, g: Tensor, wanted: Collection[str]) -> Gradients:
    padding = getattr(m, "padding_idx", None)
    if padding is not None:
        g = g.masked_fill((ids == padding)[:, :, None], 0.0)
    return {"weight": Outer(ids, g)}


def _layer_norm(m: nn.Module, x: Tensor, g: Tensor, wanted: Collection[str]) -> Gradients:
    found: Gradients = {}
    if "weight" in wanted:
        found["weight"] = (g * F.layer_norm(x, x.shape[-1:], eps=_epsilon(m))).sum(dim=1)
    if "bias" in wanted:
        found["bias"] = g.sum(dim=1)
    return found


def _rms_norm(m: nn.Module, x: Tensor, g: Tensor, wanted: Collection[str]) -> Gradients:
    """Of weight * x / rms(x), and of (1 + weight) * x / rms(x) as well."""
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + _epsilon(m))
    return {"weight": (g * (x * scale)).sum(dim=1)}


LAYERS: dict[type, Callable[[nn.Module, Tensor, Tensor, Collection[str]], Gradients]] = {
    nn.Linear: _linear,
    Conv1D: _conv1d,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
}


# Rotary positions whose frequencies are fixed when the model is loaded.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
# PEFT's prompts: their batch dimension is 1, and they are repeated for the rows afterwards.
PROMPTS = ("PromptEmbedding", "PromptEncoder")


def _layer(
    module: nn.Module,
) -> Callable[[nn.Module, Tensor, Tensor, Collection[str]], Gradients]:
    return LAYERS.get(type(module), _rms_norm)


def _epsilon(module: nn.Module) -> float:
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if value is not None:
            return float(value)
    return torch.finfo(torch.float32).eps


def _is_called_rms_norm(module: nn.Module) -> bool:
    own = dict(module.named_parameters())
    return type(module).__name__.endswith("RMSNorm") and list(own) == ["weight"]


def _is_rms_norm(module: nn.Module) -> bool:
    """Every family has its own class for it: ask the module, on made-up numbers."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    made_up = torch.linspace(-1.5, 2.0, 3 * weight.numel(), device=weight.device)
    x = (made_up.sin() * 3).view(1, 3, -1).to(weight.dtype)
    trains, weight.requires_grad = weight.requires_grad, True
    try:
        with torch.enable_grad():
            (found,) = torch.autograd.grad((module(x) * x).sum(), weight)
    finally:
        weight.requires_grad = trains
    expected = _rms_norm(module, _as_sequence(x), _as_sequence(x), ("weight",))["weight"]
    assert isinstance(expected, Tensor)
    return torch.allclose(found.float(), expected[0].to(found.dtype).float(), atol=1e-4, rtol=1e-3)
