"""What a run starts from: model, tokenizer, the owner's text; in a simulation all records too.

Everything that can be refused is refused here, before a run writes its first file.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedot.config import Config, DataConfig, EmulatorConfig
from fedot.data.records import Record, read_records, read_text, split_records
from fedot.data.tokenize import Sequences, tokenize_records, windows
from fedot.emulator.selection import kept_blocks
from fedot.errors import ConfigError
from fedot.federation.payloads import check_payload
from fedot.models.adapters import AdapterSpec, blocks_of, linear_names
from fedot.models.anatomy import anatomy_of, load_model, load_tokenizer, pick_device
from fedot.privacy.layers import coupling
from fedot.privacy.policy import Policy, load_policy
from fedot.seeds import derive_seed

__all__ = ["OwnerParts", "Parts", "load_owner_parts", "load_parts", "pooled"]

# Part of the owner's text that measures the general gap instead of distilling.
_OWNER_HELD_OUT_RATIO = 0.1


@dataclass(frozen=True, slots=True)
class OwnerParts:
    """What the model owner has, checked.

    Attributes:
        model: the full model, on its device.
        kept: blocks of the full model that the bundle has, in order.
        owner_train: windows of the owner's text, to distil with; None without owner text.
        owner_held_out: windows to measure the general gap on.
        proxy: the owner's stand-in for the task; None without one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    adapter: AdapterSpec
    kept: tuple[int, ...]
    owner_train: Sequences | None
    owner_held_out: Sequences | None
    proxy: Sequences | None


@dataclass(frozen=True, slots=True)
class Parts(OwnerParts):
    """One simulation's inputs: the owner's, and what only a simulation has in one place.

    Attributes:
        train: client name -> records to train on.
        choose: all clients' records that may choose (never under DP).
        report: all clients' records that the five numbers are measured on.
        policies: client name -> its data owner's policy, for those that have one.
    """

    train: dict[str, Sequences]
    choose: Sequences
    report: Sequences
    policies: dict[str, Policy]


def load_parts(config: Config) -> Parts:
    """Load and check everything that a simulation's config names.

    Raises:
        ConfigError: a file, the model or a number cannot be used as asked.
    """
    if not config.data.clients:
        raise ConfigError(
            "data.clients is empty; a simulation needs every client's file of records. Name them, "
            "or run over the network with: fedot serve"
        )
    owner = load_owner_parts(config)
    policies = _policies(config.data)
    train, choose, report = _client_records(config, owner.tokenizer, policies)
    known = {field.name: getattr(owner, field.name) for field in fields(owner)}
    return Parts(**known, train=train, choose=choose, report=report, policies=policies)


def load_owner_parts(config: Config) -> OwnerParts:
    """Load and check what a config names of the owner's own.

    Raises:
        ConfigError: a file, the model or a number cannot be used as asked.
    """
    check_payload(config.payload, config.federation, config.adapter, config.privacy)
    device = pick_device(config.model.device)
    model = load_model(config.model.path, config.model.dtype, device)
    tokenizer = load_tokenizer(config.model.path)
    _check_fit(model, tokenizer, config.data.max_tokens)
    anatomy = anatomy_of(model)
    blocks = blocks_of(anatomy.num_blocks, config.adapter.blocks, config.adapter.num_end_blocks)
    if config.adapter.kind == "full":
        blocks = tuple(range(anatomy.num_blocks))
    kept = tuple(range(anatomy.num_blocks))
    if isinstance(config.emulator, EmulatorConfig):
        ends = config.adapter.num_end_blocks
        kept = kept_blocks(anatomy.num_blocks, ends, config.emulator.keep_ratio)
    _check_private(config, model)
    lora = config.adapter.kind == "lora"
    spec = AdapterSpec(
        kind=config.adapter.kind,
        blocks=blocks,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        targets=linear_names(model, blocks) if lora else (),
        seed=derive_seed(config.seed, "adapter"),
    )
    owner_train, owner_held_out, proxy = _owner_records(config, tokenizer)
    return OwnerParts(
        model=model,
        tokenizer=tokenizer,
        device=device,
        adapter=spec,
        kept=kept,
        owner_train=owner_train,
        owner_held_out=owner_held_out,
        proxy=proxy,
    )


def pooled(parts: list[Sequences]) -> Sequences:
    """Sequences of all clients in one, padded to the longest."""
    length = max(part.ids.shape[1] for part in parts)
    pad = torch.nn.functional.pad
    return Sequences(
        torch.cat([pad(p.ids, (0, length - p.ids.shape[1])) for p in parts]),
        torch.cat([pad(p.learned, (0, length - p.learned.shape[1])) for p in parts]),
    )


def _policies(data: DataConfig) -> dict[str, Policy]:
    """Every client's policy; a data set has one budget, so one client of a run may spend it."""
    policies = {name: load_policy(Path(path)) for name, path in sorted(data.policies.items())}
    owners: dict[str, str] = {}
    for name, policy in policies.items():
        first = owners.setdefault(policy.dataset_id, name)
        if first != name:
            raise ConfigError(
                f"the policies of {first} and {name} both name data set {policy.dataset_id}; in a "
                "run it may be at one client only. Give each data set an id of its own."
            )
    return policies


def _client_records(
    config: Config, tokenizer: PreTrainedTokenizerBase, policies: dict[str, Policy]
) -> tuple[dict[str, Sequences], Sequences, Sequences]:
    data = config.data
    train, choose, report = {}, [], []
    most = max(1, config.evaluation.max_records // len(data.clients))
    for name in sorted(data.clients):
        records = read_records(Path(data.clients[name]), data.text_field)
        split = split_records(
            records, data.held_out_ratio, derive_seed(config.seed, "split", name), name
        )
        train[name] = _sequences(split.train, tokenizer, data, name)
        if name in policies and not policies[name].metrics_may_leave:
            continue
        choose.append(_sequences(split.choose[:most], tokenizer, data, name))
        report.append(_sequences(split.report[:most], tokenizer, data, name))
    if not choose:
        raise ConfigError(
            "no client's policy lets metrics leave, so nothing can be measured. A simulation needs "
            "held-out records of one client at least: set metrics_may_leave: true in a policy."
        )
    if not sum(map(len, choose)) or not sum(map(len, report)):
        raise ConfigError(
            f"data.held_out_ratio {data.held_out_ratio:g} leaves no record to choose or to report "
            "with; raise it, or give the clients more records."
        )
    return train, pooled(choose), pooled(report)


def _owner_records(
    config: Config, tokenizer: PreTrainedTokenizerBase
) -> tuple[Sequences | None, Sequences | None, Sequences | None]:
    data, emulator = config.data, config.emulator
    proxy = None
    if data.proxy is not None:
        records = read_records(Path(data.proxy), data.text_field)
        proxy = _sequences(records[: config.evaluation.max_records], tokenizer, data, "proxy")
    if data.owner_text is None:
        if isinstance(emulator, EmulatorConfig) and emulator.distill_steps:
            raise ConfigError(
                f"emulator.distill_steps is {emulator.distill_steps} but data.owner_text is not "
                "set; distilling needs text of the owner's. Name a file, or set distill_steps: 0."
            )
        return None, None, proxy
    texts = read_text(Path(data.owner_text), data.text_field)
    text = windows(texts, tokenizer, data.max_tokens)
    held = max(1, round(len(text) * _OWNER_HELD_OUT_RATIO))
    if len(text) - held < 1:
        raise ConfigError(
            f"data.owner_text has {len(text)} windows of {data.max_tokens} tokens; it must have at "
            "least 2. Add text or lower data.max_tokens."
        )
    most = min(held, config.evaluation.max_records)
    return text.take(range(len(text) - held)), text.take(range(len(text) - most, len(text))), proxy


def _sequences(
    records: tuple[Record, ...], tokenizer: PreTrainedTokenizerBase, data: DataConfig, name: str
) -> Sequences:
    sequences = tokenize_records(records, tokenizer, data.max_tokens)
    if not bool(sequences.learned.any(dim=1).all()):
        raise ConfigError(
            f"{name} has a record without a token to learn; empty texts and answers must be "
            "taken out."
        )
    return sequences


def _check_private(config: Config, model: PreTrainedModel) -> None:
    if not config.privacy.protects_records:
        return
    frozen = [name for name, module in model.named_modules() if coupling(module)]
    if frozen:
        reason = coupling(model.get_submodule(frozen[0]))
        raise ConfigError(f"{config.model.path} cannot be tuned under DP: {frozen[0]}: {reason}")
    positions = [name for name, _ in model.named_parameters() if "wpe" in name]
    if config.adapter.kind == "full" and positions:
        raise ConfigError(
            f"adapter.kind is full, which trains {positions[0]}; all records of a batch share it, "
            "so it has no gradient per record. Use kind blocks or lora, or privacy.unit=none."
        )


def _check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", max_tokens)
    if max_tokens > limit:
        raise ConfigError(
            f"data.max_tokens is {max_tokens}; the model reads at most {limit} tokens."
        )
    embedded = model.config.vocab_size
    if len(tokenizer) > embedded:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeds {embedded}; they do "
            "not belong together."
        )
