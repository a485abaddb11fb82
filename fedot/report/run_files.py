"""What a finished run left in its directory, checked once and frozen.

Design note: a number that could not be had is `None` and its reason stands in `notes`. NaN and
infinity count as "could not be had": a page must not draw them or call them a result. Unknown keys
are ignored, because a later fedot may write more than this one shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedot.errors import ConfigError
from fedot.report.formats import printable

__all__ = [
    "NUMBERS",
    "Quality",
    "Round",
    "RunFiles",
    "Summary",
    "read_run",
    "read_summary",
    "round_from",
    "summary_from",
]

NUMBERS = ("emulator_zero_shot", "full_zero_shot", "emulator_tuned", "plug_in", "full_tuned")
"""The five quality numbers in the order in which a reader understands them."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Text = Annotated[str, AfterValidator(printable)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A frozen part of a run's files."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Quality(Part):
    """One of the five numbers: nats per token, with its standard error."""

    loss: Annotated[float, Field(allow_inf_nan=False)]
    loss_se: Number = None
    perplexity: Number = None
    tokens: Count | None = None
    records: Count | None = None


class ClientLevel(Part):
    """What noise at the server promised and spent, for one client with all its records."""

    epsilon: Number = None
    target_epsilon: Number = None
    delta: Number = None
    noise_multiplier: Number = None
    neighbouring: Text | None = None
    assumes: Text | None = None


class Privacy(Part):
    """What was promised and what was spent, by client.

    Attributes:
        reported_by_sites: epsilon is what sites said, each over all runs on its data set.
    """

    unit: Literal["none", "example", "client", "both"]
    delta: Number = None
    target_epsilon: Number = None
    epsilon: dict[Text, Number] | None = None
    noise_multiplier: dict[Text, Number] | None = None
    neighbouring: Text | None = None
    client_level: ClientLevel | None = None
    reported_by_sites: bool = False

    @property
    def spent(self) -> dict[str, float]:
        """Epsilon of every client for which it is known."""
        return {name: value for name, value in (self.epsilon or {}).items() if value is not None}


class Wire(Part):
    """Bytes of all rounds together."""

    float32_bytes: Count
    sent_bytes: Count
    received_bytes: Count | None = None
    bundle_bytes: Count | None = None
    bytes_after: dict[Text, Count] = {}
    chain: Text = ""
    state_chain: Text = ""
    error_feedback: bool = False


class Adapter(Part):
    """What trained."""

    kind: Text
    parameters: Count | None = None
    blocks: list[int] = []


class Emulator(Part):
    """How much of the full model the clients received."""

    kept: list[int] = []
    num_blocks: Count | None = None
    parameters: Count | None = None
    full_parameters: Count | None = None


class Summary(Part):
    """`summary.json`.

    Attributes:
        measured_on: what the five numbers are about: clients' held-out `records` (a simulation),
            the owner's `proxy` set, or `nothing`.
    """

    name: Text = "run"
    fedot_version: Text = ""
    measured_on: Literal["records", "proxy", "nothing"] = "records"
    quality: dict[str, Quality | None] = {}
    recovery: Number = None
    plug_in_advantage: Number = None
    plug_in_advantage_se: Number = None
    leak_margin: Number = None
    leak_margin_se: Number = None
    plug_in_gain: Number = None
    plug_in_gain_se: Number = None
    general_gap: Number = None
    notes: dict[Text, Text] = {}
    privacy: Privacy
    wire: Wire
    rounds: Count
    best_round: Count | None = None
    clients: Count
    failures: Count = 0
    adapter: Adapter | None = None
    emulator: Emulator | None = None
    seconds: dict[Text, Number] = {}
    versions: dict[Text, Text | None] = {}
    seed: int | None = None


class Round(Part):
    """One line of `metrics.jsonl`; round 0 is before training.

    Attributes:
        rolled_back_to: nobody trained; the state of that round became the run's again.
    """

    round: Count
    rolled_back_to: Count | None = None
    cohort: list[Text] = []
    failed: dict[Text, Text] = {}
    loss: dict[str, Number] = {}
    sent_bytes: Count | None = None
    received_bytes: Count | None = None
    float32_bytes: Count | None = None
    epsilon: dict[Text, Number] = {}
    seconds: Number = None

    @property
    def highest_epsilon(self) -> float | None:
        """What the client that spent most has spent after this round."""
        return max((value for value in self.epsilon.values() if value is not None), default=None)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The three files that a report is made from."""

    summary: Summary
    rounds: tuple[Round, ...]
    config: str


def read_run(run_dir: Path) -> RunFiles:
    """Read and check `summary.json`, `metrics.jsonl` and `config.yaml` of a finished run.

    Raises:
        ConfigError: one of them is missing or is not what a run writes.
    """
    if not run_dir.is_dir():
        raise ConfigError(
            f"{run_dir} is no directory; it must be what a run left in its --out. Name that one."
        )
    where = str(run_dir / "summary.json")
    summary = summary_from(read_summary(run_dir), where)
    return RunFiles(summary, _rounds(run_dir), _config(run_dir))


def read_summary(run_dir: Path) -> Any:
    """What `summary.json` of a finished run holds, for `summary_from`.

    Raises:
        ConfigError: it is missing, or no JSON.
    """
    return _json(_text(run_dir, "summary.json"), str(run_dir / "summary.json"))


def summary_from(raw: Any, where: str = "summary.json") -> Summary:
    """Check what was read from a summary.

    Raises:
        ConfigError: a part is missing or has the wrong type.
    """
    return _checked(Summary, raw, where)


def round_from(raw: Any, where: str = "metrics.jsonl") -> Round:
    """Check what was read from a line of metrics.

    Raises:
        ConfigError: a part is missing or has the wrong type.
    """
    return _checked(Round, raw, where)


PartT = TypeVar("PartT", bound=Part)


def _checked(kind: type[PartT], raw: Any, where: str) -> PartT:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} holds no JSON object; it must be one. Run again to remake it.")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = printable(".".join(str(part) for part in first["loc"]))
        raise ConfigError(
            f"{where} does not fit at {key}: {first['msg'][:1].lower()}{first['msg'][1:]}. "
            "It must be as a run wrote it; restore it, or run again."
        ) from error


def _text(run_dir: Path, name: str) -> str:
    try:
        return (run_dir / name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{run_dir} has no {name}; a finished run leaves one. Finish the run with --resume, "
            "or name another directory."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {run_dir / name}: {error.strerror}. It must be a readable file."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{run_dir / name} is not UTF-8 text; a run writes it so. Restore it, or run again."
        ) from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where} is not valid JSON; a run writes it so. Restore it, or run again."
        ) from error


def _rounds(run_dir: Path) -> tuple[Round, ...]:
    path = run_dir / "metrics.jsonl"
    found = {}
    for number, line in enumerate(_text(run_dir, "metrics.jsonl").split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            metrics = round_from(_json(line, where), where)
            # A resumed run may write a round twice; the later line is what happened.
            found[metrics.round] = metrics
    return tuple(found[key] for key in sorted(found))


def _config(run_dir: Path) -> str:
    text = _text(run_dir, "config.yaml")
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"{run_dir / 'config.yaml'} is not valid YAML; a run writes it so. Restore it, or run "
            "again."
        ) from error
    if not isinstance(parsed, dict):
        raise ConfigError(
            f"{run_dir / 'config.yaml'} holds no sections; it must be a run's resolved config. "
            "Restore it, or run again."
        )
    return text
