"""Put a tuned adapter back into the full model, and write it for others to load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedot.models.adapters import Adapter, AdapterSpec, attach, save_adapter
from fedot.models.anatomy import anatomy_of

__all__ = ["export", "plug_in"]


def plug_in(model: PreTrainedModel, spec: AdapterSpec, state: Mapping[str, Tensor]) -> Adapter:
    """Attach an adapter to the full model that it was made for.

    Guarantees:
        An untouched adapter leaves the model's outputs bit-identical.

    Raises:
        ConfigError: the adapter's names or shapes are not the model's.
    """
    adapter = attach(model, spec, range(anatomy_of(model).num_blocks))
    adapter.load(state)
    return adapter


def export(
    adapter: Adapter,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    form: Literal["checkpoint", "peft"],
    base: str,
) -> None:
    """Write a plain checkpoint (LoRA merged in), or a PEFT adapter directory.

    Args:
        adapter: as `plug_in` made it; merging uses it up.
        tokenizer: is written beside a checkpoint.
        folder: where to, made if missing.
        form: `peft` is for LoRA adapters only.
        base: name or path of the full model, for the adapter's config.
    """
    if form == "peft":
        save_adapter(folder, adapter.spec, adapter.state(), base)
        return
    model: Any = adapter.model
    if adapter.spec.kind == "lora":
        model = model.merge_and_unload()
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
