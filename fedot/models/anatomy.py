"""Where the decoder stack of a Hugging Face causal LM is, and how to build a shallower one.

Design note: the stack is found by structure (the one `ModuleList` with as many equal blocks as the
config says), not by a table of class names. Families are listed all the same: a family is supported
once the two proofs of docs/design.md are tested for it, and refused before.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedot.config_files import refuse_missing_model
from fedot.errors import ConfigError

__all__ = [
    "SUPPORTED_FAMILIES",
    "Anatomy",
    "anatomy_of",
    "load_model",
    "load_tokenizer",
    "pick_device",
    "shallower",
]

logger = logging.getLogger(__name__)

SUPPORTED_FAMILIES = ("llama", "gpt2")

# What transformers and safetensors raise over files that are missing, broken or of another kind.
LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where the blocks of a causal LM are.

    Attributes:
        stack: dotted path of the `ModuleList`, for example `model.layers`.
        num_blocks: how many blocks it holds.
    """

    stack: str
    num_blocks: int

    def block_prefix(self, index: int) -> str:
        """The names of block `index`'s tensors start with this."""
        return f"{self.stack}.{index}."

    def split_name(self, name: str) -> tuple[int | None, str]:
        """`model.layers.3.mlp.weight` -> (3, `mlp.weight`); (None, name) outside the blocks."""
        prefix = self.stack + "."
        if not name.startswith(prefix):
            return None, name
        index, _, rest = name[len(prefix) :].partition(".")
        return int(index), rest

    def renumber(self, name: str, blocks: dict[int, int]) -> str:
        """The same tensor's name where block i is called `blocks[i]`."""
        index, rest = self.split_name(name)
        return name if index is None else f"{self.block_prefix(blocks[index])}{rest}"


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """Find the decoder stack.

    Raises:
        ConfigError: the family is not supported, or there is not exactly one such stack.
    """
    family = model.config.model_type
    if family not in SUPPORTED_FAMILIES:
        raise ConfigError(
            f"the model is of family {family!r}; supported are {', '.join(SUPPORTED_FAMILIES)}. "
            "Others would be split without proof that they are put together right again."
        )
    depth = model.config.num_hidden_layers
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == depth
        and len({type(block) for block in module}) == 1
    ]
    if len(stacks) != 1:
        raise ConfigError(
            f"the model has {len(stacks)} stacks of {depth} equal blocks; fedot splits models with "
            "exactly one."
        )
    return Anatomy(stack=stacks[0][0], num_blocks=depth)


def shallower(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new model with copies of the kept blocks, everything around them unchanged.

    Args:
        model: a supported causal LM with blocks 0..N-1.
        kept: numbers of the blocks to keep, ascending.

    Guarantees:
        With all blocks kept the logits are identical, bit for bit.
    """
    anatomy = anatomy_of(model)
    place = {old: new for new, old in enumerate(kept)}
    config = _config_of_depth(model.config, kept)
    small = AutoModelForCausalLM.from_config(
        config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    )
    state = {}
    for name, tensor in model.state_dict().items():
        index, _ = anatomy.split_name(name)
        if index is None or index in place:
            state[anatomy.renumber(name, place)] = tensor
    small.load_state_dict(state, strict=True)
    small.generation_config = copy.deepcopy(model.generation_config)
    device = next(model.parameters()).device
    nn.Module.to(small, device)
    result: PreTrainedModel = small.eval()
    return result


def load_model(path: str, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a causal LM from a directory or the hub; safetensors only, never remote code.

    Raises:
        ConfigError: there is no such checkpoint, it is no causal LM, or its weights are broken.
    """
    _check_checkpoint(path)
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            # Nothing in a directory may send us elsewhere.
            local_files_only=Path(path).is_dir(),
            output_loading_info=True,
        )
    except LOAD_ERRORS as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ConfigError(
            f"cannot load the checkpoint {path}: {type(error).__name__}: {reason}. It must be a "
            "readable Hugging Face checkpoint with *.safetensors weights."
        ) from error
    model, report = found
    if report["missing_keys"]:
        # transformers would make them up at random.
        raise ConfigError(
            f"the checkpoint {path} lacks {len(report['missing_keys'])} tensors, "
            f"{min(report['missing_keys'])} among them; it must be a whole causal language model. "
            "Get it again, or name another."
        )
    nn.Module.to(model, device)
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False
        )
    except LOAD_ERRORS as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ConfigError(
            f"cannot load a tokenizer from {path}: {reason}. Put tokenizer.json beside the model."
        ) from error
    return tokenizer


def pick_device(wanted: str) -> str:
    """`auto` becomes cuda or cpu; cuda is refused where there is none."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError(
            "model.device is cuda; this machine shows no usable CUDA device. Use auto or cpu."
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def _check_checkpoint(path: str) -> None:
    """The mistakes that people make, told apart before transformers sees the path."""
    refuse_missing_model(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except LOAD_ERRORS as error:
        reason = str(error).strip().split("\n")[0][:200]
        hub = (
            "" if Path(path).exists() else f" (there is no directory {path}, so the hub was asked)"
        )
        raise ConfigError(f"cannot read the model config of {path}{hub}: {reason}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(
            f"{path} is a {config.model_type} model, which is no causal language model; "
            f"supported families are {', '.join(SUPPORTED_FAMILIES)}."
        )
    quantized = getattr(config, "quantization_config", None)
    method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
    if method not in (None, "bitsandbytes"):
        # Some scale activations over the whole batch, which ties records together.
        raise ConfigError(
            f"{path} is quantized by {method}; supported are whole checkpoints and bitsandbytes."
        )


def _config_of_depth(config: PretrainedConfig, kept: Sequence[int]) -> PretrainedConfig:
    """A copy of the config with every per-layer list cut to the kept blocks."""
    depth = config.num_hidden_layers
    small: Any = copy.deepcopy(config)
    for key, value in vars(config).items():
        if "layer" in key and isinstance(value, list | tuple) and len(value) == depth:
            setattr(small, key, type(value)(value[i] for i in kept))
    small.num_hidden_layers = len(kept)
    result: PretrainedConfig = small
    return result
