"""A run's config: YAML into frozen pydantic models, each default once, with its bound.

Unknown keys are refused with the nearest known key; nothing is guessed or repaired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from fedot.config_errors import explain, where_in_yaml
from fedot.config_federation import FederationConfig, NetworkConfig, check_names, check_numbers
from fedot.config_privacy import ClientLevelConfig, PrivacyConfig
from fedot.config_section import Section
from fedot.errors import ConfigError

__all__ = [
    "AdapterConfig",
    "ClientLevelConfig",
    "Config",
    "DataConfig",
    "EmulatorConfig",
    "EvaluationConfig",
    "FederationConfig",
    "ModelConfig",
    "NetworkConfig",
    "PayloadConfig",
    "PrivacyConfig",
    "Section",
    "TrainingConfig",
    "config_from_dict",
    "config_from_yaml",
    "load_config",
    "to_yaml",
    "with_overrides",
]


class ModelConfig(Section):
    """The model owner's full model."""

    path: str = Field(description="directory of a Hugging Face checkpoint, or a hub id")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes the GPU where there is one"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="compute type; what trains stays float32"
    )


class DataConfig(Section):
    """The data owners' records, and the owner's own text."""

    clients: dict[str, str] = Field(
        {},
        description="client name: file (.jsonl .json .csv .parquet .txt); for simulations, over "
        "the network sites have their own",
    )
    owner_text: str | None = Field(
        None, description="the model owner's own text: distils the emulator, measures general_gap"
    )
    proxy: str | None = Field(
        None, description="the owner's own stand-in for the task: chooses the best round under DP"
    )
    policies: dict[str, str] = Field(
        {}, description="client name: its data owner's policy file, which wins over this config"
    )
    text_field: str = Field("text", description="field of a record that holds its text")
    max_tokens: int = Field(128, ge=8, description="a record is cut off after so many tokens")
    held_out_ratio: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="part of every client's records that is never trained on: half of it chooses, "
        "half of it reports",
    )

    @field_validator("clients")
    @classmethod
    def _names_stay_inside(cls, clients: dict[str, str]) -> dict[str, str]:
        """A client's name is a folder in the run's own."""
        check_names(clients, "data.clients has a client")
        return clients


class AdapterConfig(Section):
    """What trains."""

    kind: Literal["lora", "blocks", "full"] = Field(
        "lora", description="LoRA on blocks, whole blocks, or every parameter (no emulator only)"
    )
    blocks: Literal["ends", "top", "all"] | list[int] = Field(
        "ends",
        description="ends, top (only the last: less work, less to noise), or (no emulator only) "
        "all or block numbers counted from 0",
    )
    num_end_blocks: int = Field(1, ge=1, description="blocks at the bottom, and as many at the top")
    rank: int = Field(8, ge=1, description="LoRA rank r")
    alpha: float = Field(16.0, gt=0, description="LoRA scale: alpha / r multiplies the product")
    freeze: Literal["none", "A"] = Field(
        "none", description="A: LoRA's A stays at its random start, B alone trains and travels"
    )
    alternate: bool = Field(
        False, description="LoRA's B trains in odd rounds and its A in even ones; only that travels"
    )

    @model_validator(mode="after")
    def _halves_are_of_lora(self) -> AdapterConfig:
        asked = "adapter.freeze is A" if self.freeze == "A" else "adapter.alternate is true"
        if (self.freeze == "A" or self.alternate) and self.kind != "lora":
            raise ValueError(
                f"{asked} but adapter.kind is {self.kind}, which has no A and B. Set kind: lora, "
                "or leave it out."
            )
        if self.freeze == "A" and self.alternate:
            raise ValueError(
                "adapter.freeze is A and adapter.alternate is true; a frozen A never has its turn. "
                "Set one of them."
            )
        return self


class EmulatorConfig(Section):
    """How the middle is compressed. `emulator: none` shares the model as it is."""

    keep_ratio: float = Field(0.5, gt=0, le=1, description="part of the middle blocks that is kept")
    distill_steps: int = Field(200, ge=0, description="0 keeps the dropped middle as it is")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW, cosine")
    batch_size: int = Field(16, ge=1, description="windows of owner text a step")
    hidden_weight: float = Field(30.0, ge=0, description="of the hidden-state match beside LM loss")


class TrainingConfig(Section):
    """A client's local training."""

    steps_per_round: int = Field(20, ge=1, description="optimizer steps in a round")
    batch_size: int = Field(32, ge=1, description="records a step (expected number under DP)")
    micro_batch_size: int = Field(
        64, ge=1, description="most records in one forward pass; bounds memory, not the result"
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="under DP, a batch that came out larger is cut to a random part, at a price in "
        "epsilon; null never cuts",
    )
    learning_rate: float = Field(3e-3, gt=0, description="at the start of the run")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="of the local steps; sgd sends plain gradients to a server with adam"
    )
    final_lr_ratio: float = Field(
        0.1, ge=0, le=1, description="last round's learning rate over the first one's (cosine)"
    )
    weight_decay: float = Field(0.0, ge=0, description="on what trains")
    join_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="noise on what the top blocks get, over its root mean square: about the "
        "emulator's distance from the full middle, so that adapters do not lean on its errors",
    )

    @model_validator(mode="after")
    def _cap_leaves_the_expected_batch(self) -> TrainingConfig:
        if self.max_batch_size is not None and self.max_batch_size < self.batch_size:
            raise ValueError(
                f"training.max_batch_size is {self.max_batch_size}; it must be at least "
                f"batch_size, {self.batch_size}, or half of all batches are cut. Raise it."
            )
        return self


class PayloadConfig(Section):
    """What the bytes of an update go through."""

    chain: str = Field(
        "int8+deflate",
        max_length=200,
        description="an update's way up, such as top_k(keep_ratio=0.1)+int8(block=256)+deflate; or "
        "auto: what is soonest over bandwidth_mb_per_s (docs/wire-format.md has all operators)",
    )
    error_feedback: bool | None = Field(
        None,
        description="what the chain loses is added to the client's next update; null: with top_k",
    )
    bandwidth_mb_per_s: float | None = Field(
        None, gt=0, description="10^6 bytes a second from a client to the server; for chain: auto"
    )
    state: str = Field(
        "float32+deflate",
        max_length=200,
        description="the adapter's way down: a chain of 16 bit or more that drops nothing",
    )

    @model_validator(mode="after")
    def _auto_knows_its_link(self) -> PayloadConfig:
        if self.chain == "auto" and self.bandwidth_mb_per_s is None:
            raise ValueError(
                "payload.chain is auto but bandwidth_mb_per_s is not set; the choice depends on "
                "it. Set payload.bandwidth_mb_per_s, or name a chain such as int8+deflate."
            )
        return self


class EvaluationConfig(Section):
    """The five quality numbers."""

    ceiling_learning_rates: list[Annotated[float, Field(gt=0)]] = Field(
        [1e-3, 3e-3], description="full fine-tuning takes the best of these; [] leaves it out"
    )
    ceiling_batch_size: int = Field(16, ge=1, description="records a step of full fine-tuning")
    ceiling_epochs: int = Field(4, ge=1, description="at most; stops early on held-out records")
    max_records: int = Field(
        2000, ge=2, description="held-out records a number is measured on at most"
    )


class Config(Section):
    """One federation, whole."""

    model: ModelConfig
    data: DataConfig
    adapter: AdapterConfig = AdapterConfig()
    emulator: EmulatorConfig | Literal["none"] = EmulatorConfig()
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    payload: PayloadConfig = PayloadConfig()
    federation: FederationConfig = FederationConfig()
    network: NetworkConfig = NetworkConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = Field(
        0, ge=0, lt=2**32, description="of everything but privacy noise, which is never seeded"
    )

    @property
    def client_names(self) -> tuple[str, ...]:
        """All clients, ascending; of a network run its sites, none before they are settled."""
        return tuple(sorted(self.data.clients or self.network.sites or ()))

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        check_numbers(self.federation, len(self.client_names))
        if self.privacy.protects_clients and self.federation.aggregation != "mean":
            raise ValueError(
                f"privacy.unit is {self.privacy.unit} and federation.aggregation is "
                f"{self.federation.aggregation}; noise at the server covers the mean of clipped "
                "updates, and one client can move a robust rule by more than that. Set "
                "aggregation: mean, or privacy.unit: example."
            )
        strangers = sorted(self.data.policies.keys() - self.data.clients.keys())
        if strangers:
            raise ValueError(
                f"data.policies has {strangers[0]}, which is no client; it must be one of "
                f"{', '.join(self.data.clients) or 'named in data.clients'}."
            )
        if self.emulator != "none" and (
            self.adapter.kind == "full" or self.adapter.blocks not in ("ends", "top")
        ):
            raise ValueError(
                f"adapter.kind is {self.adapter.kind} on blocks {self.adapter.blocks}; with an "
                "emulator only the end blocks can train. Set emulator: none to share the whole "
                "model, or adapter.blocks: ends or top with kind lora or blocks."
            )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config; relative paths in it are meant from its own folder.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings; values are read as YAML.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read config {path}: {error.strerror}. Make one with: fedot init"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {path} is not valid YAML: {error}.") from error
    raw = with_overrides(_mapping(text, f"config {path}"), overrides)
    return config_from_dict(_paths_from(path.parent, raw))


def config_from_yaml(text: str) -> Config:
    """Check YAML that came without a file; its paths are taken as they are.

    Raises:
        ConfigError: it is no YAML mapping, or a key or value is not allowed.
    """
    return config_from_dict(_mapping(text, "the config"))


def _mapping(text: str, what: str) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{what} is not valid YAML: {where_in_yaml(error)}.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{what} holds no sections; it must be a YAML mapping.")
    return raw


def config_from_dict(raw: Mapping[str, Any]) -> Config:
    """Check a plain mapping.

    Raises:
        ConfigError: names the first key or value that is not allowed, and what would be.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error, Config, "config")) from error


def with_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with `section.key=value` strings applied."""
    result: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
    for override in overrides:
        key, sign, text = override.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts) or len(parts) > 3:
            raise ConfigError(f"--set {override!r} must read section.key=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML.") from error
        _put(result, parts, value)
    return result


def to_yaml(config: Config) -> str:
    """The resolved config: every key with the value that is used."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _put(target: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    *sections, last = parts
    for section in sections:
        inner = target.get(section)
        target[section] = dict(inner) if isinstance(inner, Mapping) else {}
        target = target[section]
    target[last] = value


def _paths_from(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """Files named in the config are looked up beside it; a hub id stays as it is."""

    def resolve(value: Any) -> Any:
        if not isinstance(value, str) or Path(value).is_absolute():
            return value
        beside = folder / Path(value).expanduser()
        # Whole, so that a run's own config means the same files wherever it is read.
        return str(beside.resolve()) if beside.exists() else value

    data, model = raw.get("data"), raw.get("model")
    if isinstance(data, dict):
        for key in ("clients", "policies"):
            if isinstance(data.get(key), dict):
                data[key] = {k: resolve(v) for k, v in data[key].items()}
        for key in {"owner_text", "proxy"} & data.keys():
            data[key] = resolve(data[key])
    if isinstance(model, dict) and "path" in model:
        model["path"] = resolve(model["path"])
    return raw
