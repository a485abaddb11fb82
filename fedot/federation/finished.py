"""What can be done with a finished run: write the plugged-in model, or taste the difference."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedot.config import Config, load_config
from fedot.emulator.bundle import read_bundle
from fedot.errors import ConfigError
from fedot.models.adapters import attach, load_adapter
from fedot.models.anatomy import load_model, load_tokenizer, pick_device
from fedot.models.plug_in import export, plug_in

__all__ = ["generate", "write_plugged_in"]

ADAPTERS = ("adapter-best", "adapter")


def write_plugged_in(
    model: str, adapter: Path, out: Path, form: Literal["checkpoint", "peft"]
) -> None:
    """Plug a run's adapter into the full model and write the result; whole or not at all.

    Args:
        model: directory or hub id of the full model.
        adapter: `RUN/adapter` or `RUN/adapter-best`.
        out: a directory that does not exist yet.
        form: a plain `checkpoint`, or a `peft` adapter directory (LoRA only).

    Raises:
        ConfigError: a path is wrong, or the adapter was not made for this model.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; name another --out.")
    _refuse_run(adapter)
    spec, state = load_adapter(adapter)
    if form == "peft" and spec.kind != "lora":
        raise ConfigError(
            f"the adapter trains whole blocks ({spec.kind}), which PEFT cannot hold; use "
            "--form checkpoint."
        )
    plugged = plug_in(load_model(model), spec, state)
    draft = out.with_name(f"{out.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    export(plugged, load_tokenizer(model), draft, form, model)
    os.replace(draft, out)


def generate(run: Path, prompt: str, num_tokens: int, temperature: float) -> dict[str, str]:
    """The same prompt continued by the full model, the tuned emulator and the plugged-in model.

    Args:
        run: a finished run's directory.
        prompt: any text.
        num_tokens: how many to add at most.
        temperature: 0 takes the likeliest token each time.

    Returns:
        Model name -> the text that it added, untuned first.

    Raises:
        ConfigError: the run is not finished, or the full model is gone.
    """
    if not (run / "adapter-best").is_dir():
        raise ConfigError(
            f"{run} holds no finished run (no adapter-best); finish it with --resume."
        )
    config = load_config(run / "config.yaml")
    if config.emulator != "none" and not (run / "bundle").is_dir():
        raise ConfigError(
            f"{run} has no bundle, so there is no emulator to compare with: results that were "
            "fetched from a server have none. Write the tuned model and use it as any other "
            f"checkpoint: fedot plug-in --model {config.model.path} --adapter {run}/adapter-best "
            "--out tuned"
        )
    spec, state = load_adapter(run / "adapter-best")
    tokenizer = load_tokenizer(config.model.path)

    def full() -> PreTrainedModel:
        return _load(config, config.model.path)

    def tuned() -> nn.Module:
        bundle = read_bundle(run / "bundle")
        adapter = attach(_load(config, str(bundle.folder)), spec, bundle.layer_map)
        adapter.load(state)
        return adapter.model

    makers: dict[str, Callable[[], nn.Module]] = {"full model, untuned": full}
    if config.emulator != "none":
        makers["emulator, tuned"] = tuned
    makers["plugged-in model"] = lambda: plug_in(full(), spec, state).model
    return {
        name: _continue(make(), tokenizer, prompt, num_tokens, temperature)
        for name, make in makers.items()
    }


def _refuse_run(adapter: Path) -> None:
    """A run's folder instead of one of the adapters in it."""
    inside = [f"{adapter}/{name}" for name in ADAPTERS if (adapter / name).is_dir()]
    if inside:
        raise ConfigError(
            f"{adapter} is a run's folder, no adapter; name one that is in it: --adapter "
            f"{' or --adapter '.join(inside)}"
        )


def _load(config: Config, path: str) -> PreTrainedModel:
    return load_model(path, config.model.dtype, pick_device(config.model.device))


def _continue(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    num_tokens: int,
    temperature: float,
) -> str:
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError("--prompt is empty; give some text to continue.")
    given = torch.tensor([ids], device=next(model.parameters()).device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    torch.manual_seed(0)
    with torch.inference_mode():
        made = model.generate(  # type: ignore[operator]
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=num_tokens,
            pad_token_id=tokenizer.eos_token_id,
            **({"do_sample": False} | sampling),
        )
    return str(tokenizer.decode(made[0, given.shape[1] :], skip_special_tokens=True))
