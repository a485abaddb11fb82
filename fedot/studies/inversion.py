"""Which tokens did a client train on? Told from the span of what it released.

The first layers that read token embeddings multiply their output's gradient with the embeddings
of the tokens at hand, so the rows of their gradient lie in the span of those embeddings. Every
token of the vocabulary is scored by how much of its embedding lies in that span; the k highest are
guessed, k being how many different tokens there were.

Source: Petrov et al. 2024, arXiv:2405.15586 (DAGER), for gradients of LoRA and whole matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter, unwrapped
from fedot.models.anatomy import anatomy_of

__all__ = ["TokenRecovery", "embedding_inputs", "recover_tokens"]

_BATCH = 256
# Directions whose singular value is below this part of the largest are rounding, not signal.
_SMALLEST_DIRECTION = 1e-3


@dataclass(frozen=True, slots=True)
class TokenRecovery:
    """Tokens found among those that were there.

    Attributes:
        precision: hits among the k highest scores; with k guesses for k tokens also the recall.
        chance: what guessing at random finds, k over the vocabulary.
        tokens: k, different tokens in the records.
    """

    precision: float
    chance: float
    tokens: int


def embedding_inputs(adapter: Adapter) -> tuple[list[str], Tensor] | None:
    """The trained matrices that read token embeddings directly, and what each token feeds them.

    Returns:
        Names of the adapter's parameters, and one row per token, shape (V, D); None where no
        trained layer reads embeddings (block 0 does not train).
    """
    model = unwrapped(adapter.model)
    names = {id(parameter): name for name, parameter in adapter.parameters.items()}
    first: list[nn.Module] = []
    inputs: list[Tensor] = []
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        weight = getattr(module, "weight", None)
        if id(weight) not in names or not isinstance(weight, Tensor) or weight.ndim != 2:
            return
        if not first:
            first.append(module)
            inputs.append(arguments[0])
        # Beside the first one: whatever reads the very same tensor.
        if arguments[0].data_ptr() == inputs[-1].data_ptr():
            seen[names[id(weight)]] = arguments[0]

    block = model.get_submodule(f"{anatomy_of(model).stack}.0")
    handles = [module.register_forward_pre_hook(look) for module in block.modules()]
    rows = []
    device = next(model.parameters()).device
    vocabulary = torch.arange(model.config.vocab_size, device=device)
    try:
        with torch.inference_mode():
            for part in vocabulary.split(_BATCH):
                first.clear()
                inputs.clear()
                adapter.model(input_ids=part[:, None], use_cache=False)
                if not inputs:
                    return None
                rows.append(inputs[0][:, 0].float().cpu().clone())
    finally:
        for handle in handles:
            handle.remove()
    return sorted(seen), torch.cat(rows)


def recover_tokens(
    change: dict[str, Tensor], adapter: Adapter, records: Sequences
) -> TokenRecovery | None:
    """Attack one gradient or update with nothing but itself and the model.

    Args:
        change: by the adapter's names, as it was released.
        adapter: its model is the attacker's too.
        records: what it was computed from; judges the attack.

    Returns:
        None where no layer that trains reads embeddings.
    """
    scores = _token_scores(change, adapter)
    if scores is None:
        return None
    # Learned tokens and those that were read to predict them; padding is neither.
    used = records.learned.clone()
    used[:, :-1] |= records.learned[:, 1:]
    true = records.ids[used].unique()
    guessed = scores.topk(len(true)).indices
    hits = int(torch.isin(guessed, true).sum())
    return TokenRecovery(hits / len(true), len(true) / len(scores), len(true))


def _token_scores(change: dict[str, Tensor], adapter: Adapter) -> Tensor | None:
    """One score per token of the vocabulary, shape (V,)."""
    table = unwrapped(adapter.model).get_input_embeddings().weight
    for name, parameter in adapter.parameters.items():
        if parameter is table:
            # A trained embedding moves where its token was read; no span is needed.
            norms: Tensor = torch.linalg.vector_norm(change[name].float(), dim=1)
            return norms
    found = embedding_inputs(adapter)
    if found is None:
        return None
    names, inputs = found
    if not change.keys() >= set(names):
        return None  # frozen, so nobody gets it
    rows = torch.cat([_rows(adapter, name, change[name]) for name in names])
    return _part_in_span(inputs, rows)


def _rows(adapter: Adapter, name: str, change: Tensor) -> Tensor:
    """A matrix's change with its input along the last dimension, as `nn.Linear` has it."""
    owner = next(
        module
        for module in adapter.model.modules()
        if getattr(module, "weight", None) is adapter.parameters[name]
    )
    return (change.T if isinstance(owner, Conv1D) else change).float()


def _part_in_span(inputs: Tensor, rows: Tensor) -> Tensor:
    """How much of each input lies in the rows' span, weighed by how strong each direction is."""
    _, strength, directions = torch.linalg.svd(rows, full_matrices=False)
    if not float(strength[0]):
        return torch.zeros(len(inputs))
    kept = strength > _SMALLEST_DIRECTION * strength[0]
    directions = directions[kept]
    centred = inputs / inputs.norm(dim=1, keepdim=True).clamp(min=1e-12)
    # With every direction in the span each token lies in it; then only the strength tells.
    weight = torch.ones_like(strength[kept])
    if len(directions) >= inputs.shape[1]:
        weight = strength[kept] / strength[0]
    parts: Tensor = torch.linalg.vector_norm((centred @ directions.T) * weight, dim=1)
    return parts
