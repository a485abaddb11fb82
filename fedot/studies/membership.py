"""Was this record trained on? Guessed from a released adapter, with reference adapters to compare.

A record's score is how much likelier the released model makes it than reference models do that were
trained on random halves of the same pool: log p(x) - log mean_k p_k(x), p being the geometric mean
over tokens. RMIA compares that ratio with those of other records; with one population for all
records this keeps their order, so the curve is the same.

Source: Zarifzadeh, Liu, Shokri 2024, arXiv:2312.03262 (RMIA); Carlini et al. 2022 (low false-
positive rates).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fedot.data.tokenize import Sequences
from fedot.evaluation.quality import measure
from fedot.models.adapters import Adapter
from fedot.privacy.audit_bounds import clopper_pearson

__all__ = ["Attack", "attack", "membership_scores", "random_records", "record_losses"]

Losses = NDArray[np.float64]
_MOST_CURVE_POINTS = 100


@dataclass(frozen=True, slots=True)
class Attack:
    """How well members were told from others.

    Attributes:
        auc: chance that a member scores above another; 0.5 is guessing.
        auc_se: its standard error.
        tpr: members found at 1 % false positives or fewer.
        tpr_low: 95 % interval of `tpr`.
        tpr_high: 95 % interval of `tpr`.
        members: how many.
        others: how many; below 100 no false positive is allowed at all.
        curve: (false-positive rate, true-positive rate) pairs, ascending.
    """

    auc: float
    auc_se: float
    tpr: float
    tpr_low: float
    tpr_high: float
    members: int
    others: int
    curve: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "curve": [list(point) for point in self.curve]}


def record_losses(adapter: Adapter, records: Sequences, autocast: bool = False) -> Losses:
    """Each record's own mean loss in nats per token, shape (N,)."""
    quality = measure(adapter.model, records, autocast=autocast)
    return np.asarray(quality.nll / quality.tokens, dtype=np.float64)


def membership_scores(released: Losses, references: Losses) -> Losses:
    """Each record's score, high where it was trained on.

    Args:
        released: losses under the model that is attacked, shape (N,).
        references: losses under the reference models, shape (K, N).
    """
    typical = np.logaddexp.reduce(-references, axis=0) - math.log(len(references))
    return np.asarray(-released - typical, dtype=np.float64)


def attack(members: Losses, others: Losses, max_false_positive_ratio: float = 0.01) -> Attack:
    """Judge scores of members and of others; ties count half.

    Raises:
        ValueError: one of them is empty.
    """
    if not len(members) or not len(others):
        raise ValueError(
            f"{len(members)} members and {len(others)} others; an attack is judged on both."
        )
    num_in, num_out = len(members), len(others)
    ranks = stats.rankdata(np.concatenate([members, others]))
    auc = (ranks[:num_in].sum() - num_in * (num_in + 1) / 2) / (num_in * num_out)
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    false = 1 - np.searchsorted(np.sort(others), thresholds) / num_out
    true = 1 - np.searchsorted(np.sort(members), thresholds) / num_in
    # The first of these thresholds may already let one through; before it, nobody is accused.
    allowed = true[false <= max_false_positive_ratio + 1e-12]
    tpr = float(allowed[-1]) if len(allowed) else 0.0
    low, high = clopper_pearson(round(tpr * num_in), num_in, 0.975)
    kept = np.unique(np.linspace(0, len(thresholds) - 1, _MOST_CURVE_POINTS).astype(int))
    curve = ((0.0, 0.0), *((float(false[i]), float(true[i])) for i in kept))
    return Attack(
        auc=float(auc),
        auc_se=_auc_se(float(auc), num_in, num_out),
        tpr=tpr,
        tpr_low=low,
        tpr_high=high,
        members=num_in,
        others=num_out,
        curve=curve,
    )


def random_records(num: int, vocabulary: int, num_tokens: int, rng: torch.Generator) -> Sequences:
    """Records of random tokens: nobody writes them, so nothing but training makes them likelier."""
    ids = torch.randint(vocabulary, (num, num_tokens), generator=rng)
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    return Sequences(ids, learned)


def _auc_se(auc: float, num_in: int, num_out: int) -> float:
    """Source: Hanley and McNeil 1982."""
    both, out_pair = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc)
    spread += (num_in - 1) * (both - auc**2) + (num_out - 1) * (out_pair - auc**2)
    return math.sqrt(max(0.0, spread) / (num_in * num_out))
