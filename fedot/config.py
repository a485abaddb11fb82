"""A run's config: YAML into frozen pydantic models, each default once, with its bound.

Unknown keys are refused with the nearest known key; nothing is guessed or repaired.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

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
    "PayloadConfig",
    "PrivacyConfig",
    "Section",
    "TrainingConfig",
    "config_from_dict",
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
        min_length=1, description="client name: file (.jsonl .json .csv .parquet .txt)"
    )
    owner_text: str | None = Field(
        None, description="the model owner's own text: distils the emulator, measures general_gap"
    )
    proxy: str | None = Field(
        None, description="the owner's own stand-in for the task: chooses the best round under DP"
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
        for name in clients:
            if not name.isprintable() or name[:1] in ("", ".") or {"/", "\\"} & set(name):
                raise ValueError(
                    f"data.clients has a client called {name!r}; a name must not be empty, start "
                    "with a dot or hold a slash, for it becomes a folder. Rename it."
                )
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
    learning_rate: float = Field(3e-3, gt=0, description="at the start of the run")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="of the local steps; sgd sends plain gradients to a server with adam"
    )
    final_lr_ratio: float = Field(
        0.1, ge=0, le=1, description="last round's learning rate over the first one's (cosine)"
    )
    weight_decay: float = Field(0.0, ge=0, description="on what trains")


class PayloadConfig(Section):
    """What the bytes of an update go through."""

    update: Literal["int8", "bfloat16", "float32"] = Field(
        "int8", description="how an update's values travel up"
    )
    block: int = Field(256, ge=64, le=4096, description="values that share one int8 scale")
    min_step: float = Field(
        0.032,
        ge=0,
        le=0.1,
        description="an int8 step is no finer than this part of the block's root mean square: "
        "finer ones cost bytes and gain nothing over noise",
    )
    state: Literal["float32", "bfloat16"] = Field(
        "float32", description="how the adapter's state travels down (never lossier than 16 bit)"
    )
    deflate_level: int = Field(1, ge=0, le=3, description="0 leaves DEFLATE out")


class FederationConfig(Section):
    """Rounds and who takes part."""

    rounds: int = Field(6, ge=1, description="exchanges between owner and clients")
    cohort_size: int | None = Field(
        None,
        ge=1,
        description="clients drawn uniformly each round (with client-level DP each by its own "
        "coin, so many on average); null takes all",
    )
    server_learning_rate: float = Field(
        1.0,
        gt=0,
        le=10,
        description="the cohort's mean update is scaled by this; above 1 where clients differ. "
        "With adam: how far a value moves in a round",
    )
    server_optimizer: Literal["sgd", "adam"] = Field(
        "sgd", description="sgd adds the mean update; adam scales it by what came in all rounds"
    )
    aggregation: Literal["mean", "trimmed_mean"] = Field(
        "mean", description="how updates become one: mean, or trimmed_mean against liars"
    )
    num_trimmed: int = Field(
        0, ge=0, description="b: values dropped at each end of every coordinate (trimmed_mean)"
    )


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
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = Field(
        0, ge=0, lt=2**32, description="of everything but privacy noise, which is never seeded"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        num_clients = len(self.data.clients)
        cohort = self.federation.cohort_size or num_clients
        if cohort > num_clients:
            raise ValueError(
                f"federation.cohort_size is {cohort}; there are {num_clients} clients. "
                "Lower it, or set it to null for all."
            )
        trimmed = self.federation.num_trimmed
        if self.federation.aggregation == "trimmed_mean" and cohort <= 2 * trimmed:
            raise ValueError(
                f"federation.num_trimmed is {trimmed}; dropping {2 * trimmed} of {cohort} values "
                "leaves none. It must be below half of the cohort."
            )
        if self.privacy.protects_clients and self.federation.aggregation != "mean":
            raise ValueError(
                f"privacy.unit is {self.privacy.unit} and federation.aggregation is "
                f"{self.federation.aggregation}; noise at the server covers the mean of clipped "
                "updates, and one client can move a robust rule by more than that. Set "
                "aggregation: mean, or privacy.unit: example."
            )
        if self.federation.aggregation == "mean" and trimmed:
            raise ValueError(
                f"federation.num_trimmed is {trimmed} but aggregation is mean, which trims "
                "nothing. Set aggregation: trimmed_mean."
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
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read config {path}: {error.strerror}. Make one with: fedot init"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = str(error).split("\n")[0]
        raise ConfigError(f"config {path} is not valid YAML: {where}.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"config {path} holds no sections; it must be a YAML mapping.")
    return config_from_dict(_paths_from(path.parent, with_overrides(raw, overrides)))


def config_from_dict(raw: Mapping[str, Any]) -> Config:
    """Check a plain mapping.

    Raises:
        ConfigError: names the first key or value that is not allowed, and what would be.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


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
        if isinstance(data.get("clients"), dict):
            data["clients"] = {k: resolve(v) for k, v in data["clients"].items()}
        for key in {"owner_text", "proxy"} & data.keys():
            data[key] = resolve(data[key])
    if isinstance(model, dict) and "path" in model:
        model["path"] = resolve(model["path"])
    return raw


def _explain(error: ValidationError) -> str:
    """One line for the most telling of pydantic's errors."""
    # Of a section or a word (emulator), the word is what somebody meant who wrote a word.
    telling = {"extra_forbidden": 0, "model_type": 2}
    errors = sorted(error.errors(), key=lambda e: telling.get(e["type"], 1))
    first = errors[0]
    key = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    if first["type"] == "extra_forbidden":
        known = sorted(_known_keys(Config))
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"config has no key {key}.{hint}"
    if first["type"] == "missing":
        return f"config lacks {key}, which has no default."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    text = f"{key} is {first['input']!r}; {message[0].lower()}{message[1:]}."
    if key.startswith("privacy.target_epsilon"):
        text += " Use privacy.unit=none to train without DP."
    return text


def _is_branch(part: str | int) -> bool:
    """Is it pydantic's name for one of a key's kinds of value, and no part of the key?"""
    return str(part).startswith(("EmulatorConfig", "literal[", "list["))


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        yield prefix + name
        for kind in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _known_keys(kind, f"{prefix}{name}.")
