"""Which tensors train, what they are called, and how they are put on a model.

Tensors are always named as in the *full* model (docs/design.md, "Full-model coordinates"), even
while they sit in an emulator with fewer blocks: `model.layers.22.self_attn.q_proj.lora_A.weight`.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedot.errors import ConfigError
from fedot.messages import AdapterPart
from fedot.models.anatomy import Anatomy, anatomy_of

__all__ = [
    "Adapter",
    "AdapterSpec",
    "are_block_numbers",
    "attach",
    "blocks_of",
    "linear_names",
    "load_adapter",
    "part_names",
    "save_adapter",
    "unwrapped",
]

logger = logging.getLogger(__name__)

SPEC_FILE = "fedot-adapter.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
# PEFT puts the adapter's name between `lora_A` and `weight`; it is left out of files and names.
PEFT_NAME = "default"

AdapterState = dict[str, Tensor]
AdapterKind = Literal["lora", "blocks", "full"]


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What trains, in full-model coordinates.

    Attributes:
        kind: `lora` on the blocks' linear layers, the whole `blocks`, or `full`: every parameter.
        blocks: numbers of blocks in the full model, ascending.
        rank: r of LoRA, alpha / r its scale.
        targets: for `lora`, the linear layers by full-model name.
        seed: of LoRA's random A. Whoever has the spec has the same A, so one that stays frozen
            never travels.
    """

    kind: AdapterKind
    blocks: tuple[int, ...]
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return asdict(self)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> AdapterSpec:
        """Read what `to_json` wrote; it may come from a peer.

        Raises:
            KeyError: a field is missing.
            ValueError: a value is not allowed.
        """
        spec = AdapterSpec(
            kind=raw["kind"],
            blocks=tuple(raw["blocks"]),
            rank=raw["rank"],
            alpha=raw["alpha"],
            targets=tuple(raw["targets"]),
            seed=raw["seed"],
        )
        allowed = {
            "kind": spec.kind in get_args(AdapterKind),
            "blocks": are_block_numbers(spec.blocks),
            "rank": type(spec.rank) is int and spec.rank > 0,
            "alpha": type(spec.alpha) in (int, float) and 0 < spec.alpha < math.inf,
            "targets": isinstance(raw["targets"], list | tuple)
            and all(isinstance(name, str) for name in spec.targets),
            "seed": type(spec.seed) is int and 0 <= spec.seed < 2**32,
        }
        for field, is_allowed in allowed.items():
            if not is_allowed:
                raise ValueError(f"the adapter's {field}")
        return spec


class Adapter:
    """Trainable tensors on a model, by their full-model names.

    Attributes:
        model: run this; its trainable parameters are exactly the adapter's.
        parameters: full-model name -> parameter, names ascending; float32.
        join: the last block of a frozen middle, whose output blocks that train get; None where
            there is no such middle.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: AdapterSpec,
        parameters: dict[str, nn.Parameter],
        join: nn.Module | None = None,
    ):
        self.model = model
        self.join = join
        self.spec = spec
        self.parameters = dict(sorted(parameters.items()))

    def train_only(self, part: AdapterPart) -> None:
        """Let one part train; what does not is frozen until this is called again.

        Raises:
            ValueError: the adapter has no such part.
        """
        chosen = part_names(self.parameters, part)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in chosen)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What trains now: exactly this is optimized, clipped, noised and sent."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    def state(self) -> AdapterState:
        """A copy of every tensor, float32 on the CPU."""
        return {
            n: p.detach().to("cpu", torch.float32, copy=True) for n, p in self.parameters.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite every tensor.

        Raises:
            ConfigError: a name or shape differs; then nothing has been written.
        """
        _check_fits(self.parameters, state)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    @property
    def num_parameters(self) -> int:
        """P, the length of a flat update."""
        return sum(p.numel() for p in self.parameters.values())


def part_names(names: Iterable[str], part: AdapterPart) -> frozenset[str]:
    """Which of an adapter's tensors belong to a part of it.

    Raises:
        ValueError: none do, so that nothing would train.
    """
    marks = {"all": "", "A": ".lora_A.", "B": ".lora_B."}
    chosen = frozenset(name for name in names if marks[part] in name)
    if not chosen:
        raise ValueError(f"the adapter has no part {part}; only LoRA has. Train all of it.")
    return chosen


def blocks_of(num_blocks: int, wanted: str | Sequence[int], num_end_blocks: int) -> tuple[int, ...]:
    """Numbers of the blocks that train.

    Raises:
        ConfigError: a number is out of range, or the ends meet.
    """
    if wanted in ("ends", "top"):
        if 2 * num_end_blocks > num_blocks:
            raise ConfigError(
                f"adapter.num_end_blocks is {num_end_blocks}; the model has {num_blocks} blocks, "
                f"so it must be at most {num_blocks // 2}."
            )
        last = range(num_blocks - num_end_blocks, num_blocks)
        return tuple(last) if wanted == "top" else (*range(num_end_blocks), *last)
    if wanted == "all":
        return tuple(range(num_blocks))
    numbers = sorted({int(i) for i in wanted})
    if not numbers or numbers[0] < 0 or numbers[-1] >= num_blocks:
        raise ConfigError(
            f"adapter.blocks is {list(wanted)}; numbers must lie in 0..{num_blocks - 1}."
        )
    return tuple(numbers)


def are_block_numbers(blocks: Any) -> bool:
    """Are these numbers of blocks: one at least, whole, ascending, none twice?"""
    if not isinstance(blocks, list | tuple) or not blocks:
        return False
    if any(type(block) is not int or block < 0 for block in blocks):
        return False
    return list(blocks) == sorted(set(blocks))


def linear_names(model: PreTrainedModel, blocks: Sequence[int]) -> tuple[str, ...]:
    """Names of all linear layers in some blocks: what LoRA sits on."""
    anatomy = anatomy_of(model)
    found = []
    for name, module in model.named_modules():
        index, _ = anatomy.split_name(name) if "." in name else (None, "")
        if index in blocks and isinstance(module, nn.Linear | Conv1D):
            found.append(name)
    return tuple(found)


def attach(model: PreTrainedModel, spec: AdapterSpec, layer_map: Sequence[int]) -> Adapter:
    """Put an adapter on a model; everything else is frozen.

    Args:
        model: the full model or an emulator. LoRA layers are put into it.
        spec: what trains. LoRA's A is drawn from its seed; B starts at zero, so that the model's
            outputs do not change.
        layer_map: the full model's number of each block of `model`.

    Raises:
        ConfigError: a block or layer that is to train is not in the model.
    """
    anatomy = anatomy_of(model)
    if len(layer_map) != anatomy.num_blocks:
        raise ConfigError(
            f"the layer map names {len(layer_map)} blocks and the model has {anatomy.num_blocks}; "
            "they do not belong together."
        )
    missing = set(spec.blocks) - set(layer_map)
    if missing:
        raise ConfigError(
            f"the adapter trains blocks {sorted(missing)}, which the model at hand does not have."
        )
    model.requires_grad_(False)
    _leave_out_dropout(model)
    to_full = dict(enumerate(layer_map))
    join = _join(model, spec, anatomy, layer_map)
    if spec.kind == "lora":
        return _attach_lora(model, spec, anatomy, to_full, join)
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        index, _ = anatomy.split_name(name)
        if spec.kind == "full" or (index is not None and to_full[index] in spec.blocks):
            # Small steps are lost in bfloat16: what trains is float32, autocast does the rest.
            parameter.data = parameter.data.float()
            chosen[anatomy.renumber(name, to_full)] = parameter
            parameter.requires_grad_(True)
    return Adapter(model, spec, chosen, join)


def save_adapter(folder: Path, spec: AdapterSpec, state: Mapping[str, Tensor], base: str) -> None:
    """Write an adapter directory; LoRA in PEFT's own format, loadable on the full model.

    It is at `folder` whole, or what was there before still is.
    """
    final, folder = folder, folder.with_name(f"{folder.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prefix = PEFT_PREFIX if spec.kind == "lora" else ""
    if spec.kind == "lora":
        _lora_config(spec, spec.targets, base).save_pretrained(str(folder))
    tensors = {prefix + name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps({"base_model": base, **spec.to_json()}, indent=1)
    (folder / SPEC_FILE).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    folder.rename(final)


def load_adapter(folder: Path) -> tuple[AdapterSpec, AdapterState]:
    """Read what `save_adapter` wrote.

    Raises:
        ConfigError: the directory is no adapter, or a file in it is broken.
    """
    try:
        spec = AdapterSpec.from_json(json.loads((folder / SPEC_FILE).read_text(encoding="utf-8")))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(
            f"cannot read an adapter from {folder}: {type(error).__name__}. It must hold "
            f"{SPEC_FILE} and {WEIGHTS_FILE}, as in RUN/adapter."
        ) from error
    return spec, {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}


def _join(
    model: PreTrainedModel, spec: AdapterSpec, anatomy: Anatomy, layer_map: Sequence[int]
) -> nn.Module | None:
    trains = [spec.kind == "full" or block in spec.blocks for block in layer_map]
    for here in reversed(range(len(trains) - 1)):
        if trains[here + 1] and not trains[here]:
            return model.get_submodule(anatomy.block_prefix(here).removesuffix("."))
    return None


def _leave_out_dropout(model: nn.Module) -> None:
    """Switch off what draws from a global generator: two runs of one seed would differ."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _attach_lora(
    model: PreTrainedModel,
    spec: AdapterSpec,
    anatomy: Anatomy,
    to_full: dict[int, int],
    join: nn.Module | None,
) -> Adapter:
    from_full = {full: here for here, full in to_full.items()}
    here = linear_names(model, [from_full[block] for block in spec.blocks])
    strange = set(spec.targets) - {anatomy.renumber(name, to_full) for name in here}
    if strange or not spec.targets:
        raise ConfigError(
            f"the adapter does not fit the model: it trains {min(strange, default='no layer')}, "
            "which is no linear layer of the model's blocks. Use the model that it was made for."
        )
    targets = [anatomy.renumber(name, from_full) for name in spec.targets]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(spec.seed)
        # PEFT says that GPT-2's Conv1D needs fan_in_fan_out and then sets it, which is right.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        peft_model = get_peft_model(model, _lora_config(spec, targets, None))
    chosen = {}
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad:
            plain = name.removeprefix(PEFT_PREFIX).replace(f".{PEFT_NAME}.", ".")
            chosen[anatomy.renumber(plain, to_full)] = parameter
    return Adapter(peft_model, spec, chosen, join)


def _lora_config(spec: AdapterSpec, targets: Sequence[str], base: str | None) -> LoraConfig:
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=list(targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=base is not None,
    )


def _check_fits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    if expected.keys() != state.keys():
        odd = sorted(expected.keys() ^ state.keys())[0]
        raise ConfigError(
            f"the adapter does not fit the model: tensor {odd} is on one side only "
            f"({len(expected)} expected, {len(state)} given). Use the model that it was made for."
        )
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            raise ConfigError(
                f"the adapter does not fit the model: {name} has shape "
                f"{tuple(state[name].shape)}, expected {tuple(tensor.shape)}."
            )


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    result: PreTrainedModel = inner
    return result
