"""A data owner's policy: what may be done with one data set, whoever asks.

    dataset_id: notes-2026        # names the data set in the ledger; a copy keeps its name
    max_epsilon: 8                # over everything that is ever trained on it; null demands no DP
    delta: 1.0e-5
    adapters: [lora]
    chains: [int8+deflate]        # operators of an update's chain; left out: any
    metrics_may_leave: false
    held_out_ratio: 0.1           # of the records, that no network run trains on; left out: none
    held_out_seed: 0

It is read at the site and wins over every task: what it does not allow is refused before training
starts, with what would fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from fedot.config import AdapterConfig, Section
from fedot.config_errors import explain, where_in_yaml
from fedot.errors import BudgetError, ConfigError
from fedot.privacy.accounting import SampledGaussian, epsilon_of, least_noise
from fedot.privacy.ledger import EPSILON_SLACK, Entry

__all__ = [
    "Policy",
    "Request",
    "ledger_beside",
    "load_policy",
    "refuse_unless_allowed",
    "rounds_that_fit",
]


class Policy(Section):
    """One data owner's terms for one data set."""

    dataset_id: str = Field(min_length=1, max_length=200)
    max_epsilon: float | None = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=1)
    adapters: list[str] | None = Field(None, min_length=1)
    chains: list[str] | None = Field(None, min_length=1)
    metrics_may_leave: bool = False
    # Not the server's to say: by choosing both it could ask whether one record is there.
    held_out_ratio: float = Field(0.0, ge=0, lt=1)
    held_out_seed: int = Field(0, ge=0, lt=2**64)

    @field_validator("adapters")
    @classmethod
    def _kinds_exist(cls, adapters: list[str] | None) -> list[str] | None:
        known = get_args(AdapterConfig.model_fields["kind"].annotation)
        for kind in adapters or []:
            if kind not in known:
                raise ValueError(f"adapters has {kind!r}; it must be one of {', '.join(known)}.")
        return adapters


@dataclass(frozen=True, slots=True)
class Request:
    """What a task asks of a data set.

    Attributes:
        key: the round's, as in the ledger.
        adapter: kind of what trains.
        chain: operators of the update's chain, joined by `+`.
        event: what one round costs; None without DP.
        num_rounds: rounds of this kind that are still to come in the run, this one included.
    """

    key: str
    adapter: str
    chain: str
    event: SampledGaussian | None
    num_rounds: int


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        ConfigError: it cannot be read, or a key or value is not allowed.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read policy {path}: {error.strerror}. Without it nothing is trained; name a "
            "policy file that is there."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"policy {path} is not valid YAML: {where_in_yaml(error)}.") from error
    try:
        return Policy.model_validate(raw if isinstance(raw, dict) else {})
    except ValidationError as error:
        raise ConfigError(explain(error, Policy, f"policy {path}")) from error


def ledger_beside(policy: Path) -> Path:
    """Where a policy's data set keeps what it has spent, whichever owners it trains for."""
    return policy.with_name(f"{policy.stem}.ledger.jsonl")


def refuse_unless_allowed(policy: Policy, request: Request, held: Sequence[Entry]) -> None:
    """Let a task pass that the policy allows, with all rounds that it has planned.

    The budget of a round that holds a reservation is not asked for again. Whether the round at hand
    may be spent is decided once more, under the ledger's lock, by `Ledger.reserve`.

    Args:
        policy: the data owner's.
        request: what the task asks.
        held: what stands in the ledger.

    Raises:
        ConfigError: the adapter or the chain is not allowed.
        BudgetError: DP is demanded, or the rounds cost more than is left; says what would fit.
    """
    _refuse_kind("adapter", request.adapter, policy.adapters, policy.dataset_id)
    _refuse_kind("chain", request.chain, policy.chains, policy.dataset_id)
    if policy.max_epsilon is None:
        return
    if request.event is None:
        raise BudgetError(
            f"the policy of data set {policy.dataset_id} demands DP and the task has none; nothing "
            f"was trained. Use privacy.unit=example with a target_epsilon of at most "
            f"{policy.max_epsilon:g}."
        )
    if any(entry.key == request.key for entry in held):
        return
    before = [entry.event for entry in held if entry.dataset_id == policy.dataset_id]
    total = epsilon_of([*before, _times(request.event, request.num_rounds)], policy.delta)
    if total > policy.max_epsilon + EPSILON_SLACK:
        raise BudgetError(
            f"data set {policy.dataset_id} may spend epsilon {policy.max_epsilon:g} at delta "
            f"{policy.delta:g} and has spent {epsilon_of(before, policy.delta):.3f}; the "
            f"{request.num_rounds} rounds to come, each {request.event.num_steps} steps with noise "
            f"multiplier {request.event.noise_multiplier:.3f}, would make it {total:.3f}. Nothing "
            f"was trained. {_what_fits(policy, before, request.event, request.num_rounds)}"
        )


def rounds_that_fit(
    before: Sequence[SampledGaussian],
    event: SampledGaussian,
    max_epsilon: float,
    delta: float,
    most: int,
) -> int:
    """How many rounds like `event` fit into what is left, at most `most`."""

    def fits(num: int) -> bool:
        return epsilon_of([*before, _times(event, num)], delta) <= max_epsilon + EPSILON_SLACK

    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _what_fits(
    policy: Policy, before: Sequence[SampledGaussian], event: SampledGaussian, num_rounds: int
) -> str:
    """What the server could ask for instead."""
    max_epsilon, delta = policy.max_epsilon or math.inf, policy.delta
    run = _times(event, num_rounds)
    noise = least_noise(before, run, max_epsilon, delta)
    if noise is None:
        return "Nothing fits any more: this data set is spent."
    epsilon = epsilon_of([replace(run, noise_multiplier=noise)], delta)
    rounds = rounds_that_fit(before, event, max_epsilon, delta, num_rounds)
    # Rounded down, so that the number can be used as it stands.
    target = math.floor(epsilon * 100) / 100
    return (
        f"What would fit: {rounds} of these rounds, or all of them with noise multiplier "
        f"{noise:.3f}: privacy.target_epsilon={target:.2f} with privacy.delta={delta:g}."
    )


def _refuse_kind(what: str, asked: str, allowed: Sequence[str] | None, dataset_id: str) -> None:
    if allowed is not None and asked not in allowed:
        raise ConfigError(
            f"the task's {what} is {asked}; the policy of data set {dataset_id} allows "
            f"{', '.join(allowed)}. Nothing was trained; ask for one of these."
        )


def _times(event: SampledGaussian, num_rounds: int) -> SampledGaussian:
    return replace(event, num_steps=event.num_steps * num_rounds)
