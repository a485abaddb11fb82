"""What a run would cost, or what noise it needs, before there is a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedot.errors import ConfigError
from fedot.privacy.accounting import (
    SampledGaussian,
    calibrate_noise,
    epsilon_of,
    rdp_epsilon_of,
)

__all__ = ["Plan", "PlannedRounds", "plan_rounds"]


@dataclass(frozen=True, slots=True)
class PlannedRounds:
    """What so many rounds cost: epsilon (PLD), and from Renyi DP where it exists."""

    rounds: int
    epsilon: float
    epsilon_rdp: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A run at one client: one round's event, and what more or fewer rounds would cost."""

    event: SampledGaussian
    rounds: int
    delta: float
    costs: tuple[PlannedRounds, ...]


def plan_rounds(
    *,
    num_records: int,
    batch_size: int,
    steps_per_round: int,
    rounds: int,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    max_batch_size: int | None = None,
) -> Plan:
    """Find the noise for an epsilon, or the epsilon of a noise.

    Args:
        num_records: the client trains on.
        batch_size: expected records a step.
        steps_per_round: in every round.
        rounds: that the client takes part in.
        delta: of the guarantee.
        epsilon: to be met by all rounds together; or else
        noise_multiplier: z, that is to be used.
        max_batch_size: cap of a batch, or None.

    Raises:
        ConfigError: neither or both of epsilon and noise; a cap below the expected batch.
        BudgetError: no noise meets the epsilon.
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise ConfigError("--epsilon and --noise: give one of them; the other is the answer.")
    if max_batch_size is not None and max_batch_size < batch_size:
        raise ConfigError(
            f"--max-batch-size is {max_batch_size}; it must be at least --batch-size, {batch_size}."
        )
    prob = min(1.0, batch_size / num_records)
    capped = max_batch_size is not None and max_batch_size < num_records
    cap = (max_batch_size, num_records) if capped else (None, None)
    if epsilon is not None:
        noise_multiplier = calibrate_noise(prob, steps_per_round * rounds, epsilon, delta, *cap)
    assert noise_multiplier is not None
    event = SampledGaussian(prob, noise_multiplier, steps_per_round, *cap)
    numbers = sorted({1, max(1, rounds // 4), max(1, rounds // 2), rounds, 2 * rounds})
    return Plan(event, rounds, delta, tuple(_cost(event, num, delta) for num in numbers))


def _cost(event: SampledGaussian, rounds: int, delta: float) -> PlannedRounds:
    events = [replace(event, num_steps=event.num_steps * rounds)]
    return PlannedRounds(rounds, epsilon_of(events, delta), rdp_epsilon_of(events, delta))
