"""Who takes part in which round. No torch here, until a secret source draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

from fedot.config import Config
from fedot.journal import Journal
from fedot.seeds import derive_seed

if TYPE_CHECKING:
    from fedot.privacy.noise import NoiseSource

__all__ = ["draw_cohorts", "most_rounds", "planned_rounds", "poisson_cohorts", "run_cohorts"]


def draw_cohorts(
    seed: int, num_rounds: int, clients: Sequence[str], cohort_size: int | None
) -> tuple[tuple[str, ...], ...]:
    """One cohort a round, drawn uniformly without replacement; names ascending.

    Args:
        seed: the config's; the same seed draws the same cohorts, also after a restart.
        num_rounds: how many.
        clients: everyone.
        cohort_size: how many a round; None takes all.
    """
    names = sorted(clients)
    if cohort_size is None or cohort_size == len(names):
        return (tuple(names),) * num_rounds
    return tuple(
        tuple(sorted(Random(derive_seed(seed, "cohort", round)).sample(names, cohort_size)))
        for round in range(1, num_rounds + 1)
    )


def poisson_cohorts(
    num_rounds: int, clients: Sequence[str], sampling_prob: float, noise: NoiseSource
) -> tuple[tuple[str, ...], ...]:
    """One cohort a round, in which every client is by its own coin; it may be empty.

    Args:
        num_rounds: how many.
        clients: everyone.
        sampling_prob: q in (0, 1].
        noise: a secret source: who knows a seed knows who takes part. Draw once a run and keep it.
    """
    from fedot.privacy.sampling import poisson_batch

    names = sorted(clients)
    return tuple(
        tuple(names[row] for row in poisson_batch(len(names), sampling_prob, noise))
        for _ in range(num_rounds)
    )


def run_cohorts(
    config: Config,
    journal: Journal,
    names: Sequence[str],
    make_noise: Callable[[], NoiseSource],
) -> tuple[tuple[str, ...], ...]:
    """All cohorts of a run, the same after a restart.

    With client-level DP they are Poisson, from a secret source, drawn once and kept in the journal.
    """
    federation = config.federation
    if not config.privacy.protects_clients:
        return draw_cohorts(config.seed, federation.rounds, names, federation.cohort_size)
    if journal.fact("cohorts") is None:
        prob = (federation.cohort_size or len(names)) / len(names)
        journal.note("cohorts", poisson_cohorts(federation.rounds, names, prob, make_noise()))
    return tuple(tuple(cohort) for cohort in journal.fact("cohorts"))


def most_rounds(config: Config, names: Sequence[str]) -> dict[str, int]:
    """For how many rounds of a run each client is drawn at most, known before it starts.

    Poisson cohorts are secret until they are drawn, and with amplification after it too, so there
    it is every round.
    """
    federation = config.federation
    if config.privacy.protects_clients:
        return dict.fromkeys(sorted(names), federation.rounds)
    return planned_rounds(
        draw_cohorts(config.seed, federation.rounds, names, federation.cohort_size)
    )


def planned_rounds(cohorts: Sequence[Sequence[str]]) -> dict[str, int]:
    """For how many rounds each client is drawn: what its noise is calibrated for."""
    return dict(Counter(name for cohort in cohorts for name in cohort))
