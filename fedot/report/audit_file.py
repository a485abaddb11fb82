"""`audit.json`, checked once and frozen; see `fedot.studies.privacy_audit` for what it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fedot.errors import ConfigError
from fedot.report.formats import printable

__all__ = ["Attack", "Audit", "Game", "Recovery", "audit_from", "read_audit"]

AUDIT_FILE = "audit.json"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, AfterValidator(printable)]


class Part(BaseModel):
    """A frozen part of the file; unknown keys are a later fedot's."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Repeated(Part):
    """Many runs with one canary each."""

    games: int
    lower_bound: Finite
    ceiling: Finite


class Game(Part):
    """One run with many canaries; without a claim there is no f-DP bound."""

    canaries: int
    guesses: int
    correct: int
    one_run_bound: Finite
    one_run_ceiling: Finite
    lower_bound: Finite | None = None
    ceiling: Finite | None = None
    power: dict[Text, Finite] = {}
    repeated: Repeated | None = None


class Attack(Part):
    """Membership inference on one released adapter."""

    auc: Finite
    auc_se: Finite
    tpr: Finite
    tpr_low: Finite
    tpr_high: Finite
    members: int
    others: int
    curve: list[tuple[Finite, Finite]] = []


class Recovery(Part):
    """Tokens told from one gradient or update."""

    records: int
    dp: Literal["on", "off"]
    view: Text
    precision: Finite
    chance: Finite
    tokens: int


class Claim(Part):
    """What is claimed about the audited client."""

    epsilon: Finite
    delta: Finite
    noise_multiplier: Finite
    max_batch_size: int | None = None


class Sampling(Part):
    """Batches against Poisson sampling."""

    size_variance_ratio: Finite
    p_value: Finite


class Mechanism(Part):
    """Checks of the mechanism itself."""

    sensitivity: Finite
    sampling: Sampling | None = None


class Audit(Part):
    """`audit.json`."""

    audited: Literal["run", "config"]
    unit: Text
    client: Text
    confidence: Finite
    claim: Claim | None = None
    gradient_canaries: Game | None = None
    mechanism: Mechanism | None = None
    text_canaries: dict[Text, Game] = {}
    membership: dict[Text, Attack] = {}
    inversion: list[Recovery] = []
    findings: list[Text] = []


def audit_from(raw: Any, where: str = AUDIT_FILE) -> Audit:
    """Check what was read.

    Raises:
        ConfigError: a part is missing or has the wrong type.
    """
    try:
        return Audit.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = printable(".".join(str(part) for part in first["loc"]))
        raise ConfigError(
            f"{where} does not fit at {key}. It must be as fedot audit wrote it; audit again."
        ) from error


def read_audit(folder: Path) -> Audit | None:
    """The audit that lies in a folder; None where there is none.

    Raises:
        ConfigError: the file is broken.
    """
    path = folder / AUDIT_FILE
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not valid JSON; fedot audit writes it so. Audit again."
        ) from error
    return audit_from(raw, str(path))
