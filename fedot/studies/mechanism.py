"""Two checks of the mechanism itself, for bugs that no membership game shows well.

- *Sensitivity*: what one record more moves a step's sum by, over the clip norm. Above 1 the noise
  is too small by that factor. A loss that ties a record's gradient to its neighbours (a mean over
  the batch's tokens) passes every test of single records and fails here.
- *Sampling*: whether batches look as Poisson sampling would make them. Fixed or shuffled batches
  release about as much to a membership game, but the accountant's amplification is not theirs.

Both run without noise, on a copy of nothing real: neither releases anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from fedot.client.training import PrivateSettings, TrainingSettings
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.privacy.noise import NoiseSource
from fedot.studies.canaries import Train, canary_rows, observed_steps

__all__ = ["SamplingCheck", "check_sampling", "measure_sensitivity"]

# From above every gradient's norm (nothing is clipped) to far below it (everything is).
_CLIP_NORMS_OVER_LARGEST = tuple(2.0**-k for k in range(-1, 9))
_NUM_SHORT = 31
_LEARNED_TOKENS_OF_SHORT = 2


def measure_sensitivity(train: Train, adapter: Adapter, records: Sequences) -> float:
    """The most that one record more moved a step's clipped sum by, over the clip norm C.

    Many copies of a short record, with and without a long one beside them, at many clip norms: if
    a gradient depends on its neighbours' lengths, all copies move together.

    Args:
        train: what is audited.
        adapter: left as it was found.
        records: some real ones.

    Guarantees:
        At most 1, but for rounding, if every record is clipped by itself.
    """
    before = adapter.state()
    long, *_, source = records.learned.sum(dim=1).argsort(descending=True, stable=True).tolist()
    chosen = Sequences(*(t[[long] + [source] * _NUM_SHORT] for t in (records.ids, records.learned)))
    short = chosen.learned & (chosen.learned.cumsum(dim=1) <= _LEARNED_TOKENS_OF_SHORT)
    mixed = Sequences(chosen.ids, torch.cat([chosen.learned[:1], short[1:]]))
    alone = mixed.take([0])
    largest = float(_sum_of(train, adapter, alone, 1e9).norm())
    found = 0.0
    for ratio in _CLIP_NORMS_OVER_LARGEST:
        clip = ratio * largest
        with_it = _sum_of(train, adapter, mixed, clip)
        without = _sum_of(train, adapter, mixed.take(range(1, len(mixed))), clip)
        found = max(found, float((with_it - without).norm()) / clip)
    adapter.load(before)
    return found


@dataclass(frozen=True, slots=True)
class SamplingCheck:
    """How batches compare with Poisson sampling; every p-value is two-sided.

    Attributes:
        rate: part of all records in an average batch.
        size_variance_ratio: variance of batch sizes over the binomial one, q (1 - q) N.
        overlap_ratio: records that two batches in a row share, over q^2 N.
        p_value: of the worst of the three, times three (Bonferroni).
    """

    rate: float
    size_variance_ratio: float
    overlap_ratio: float
    p_value: float


def check_sampling(
    train: Train,
    sampling_prob: float,
    noise: NoiseSource,
    num_records: int = 200,
    num_steps: int = 200,
) -> SamplingCheck | None:
    """Batches read off a run, against Poisson sampling with q; None for q = 1, which samples none.

    Args:
        train: what is audited.
        sampling_prob: q, as claimed.
        noise: the run's randomness.
        num_records: canaries that the run consists of.
        num_steps: batches.
    """
    if sampling_prob >= 1:
        return None
    private = PrivateSettings(sampling_prob, 0.0, 1.0)
    rows = canary_rows(train, private, num_steps, num_records, noise)
    expected, variance = num_records * sampling_prob, sampling_prob * (1 - sampling_prob)
    sizes = rows.sum(axis=1)
    spread = float(((sizes - expected) ** 2).sum() / (num_records * variance))
    rate_z = (sizes.sum() - num_steps * expected) / math.sqrt(num_steps * num_records * variance)
    shared = float((rows[1:] & rows[:-1]).sum())
    pairs = num_records * (num_steps - 1)
    # Neighbouring pairs share a batch: their covariance is q^3 (1 - q).
    both = sampling_prob**2
    shared_var = pairs * both * (1 - both)
    shared_var += 2 * num_records * (num_steps - 2) * sampling_prob**3 * (1 - sampling_prob)
    shared_z = (shared - pairs * both) / math.sqrt(shared_var)
    p_values = (
        2 * min(stats.chi2.cdf(spread, num_steps), stats.chi2.sf(spread, num_steps)),
        2 * stats.norm.sf(abs(rate_z)),
        2 * stats.norm.sf(abs(shared_z)),
    )
    return SamplingCheck(
        rate=float(rows.mean()),
        size_variance_ratio=spread / num_steps,
        overlap_ratio=shared / (pairs * both),
        p_value=min(1.0, 3 * float(min(p_values))),
    )


def _sum_of(train: Train, adapter: Adapter, records: Sequences, l2_clip_norm: float) -> Tensor:
    """The clipped sum of one step over all records, without noise, shape (P,)."""
    start = adapter.state()
    settings = TrainingSettings(1, len(records), len(records), learning_rate=1e-9)
    private = PrivateSettings(1.0, 0.0, l2_clip_norm)
    with observed_steps(list(adapter.trained.values())) as steps:
        train(adapter, records, settings, private, NoiseSource.from_os())
    adapter.load(start)
    return steps[0].double() * len(records)
