"""Who takes part in which round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

from fedot.seeds import derive_seed

__all__ = ["draw_cohorts", "planned_rounds"]


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


def planned_rounds(cohorts: Sequence[Sequence[str]]) -> dict[str, int]:
    """For how many rounds each client is drawn: what its noise is calibrated for."""
    return dict(Counter(name for cohort in cohorts for name in cohort))
