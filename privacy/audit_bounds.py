"""What a membership game says about epsilon: lower bounds, their ceilings, and their power.

The game: every canary is put into the data by its own fair coin, the mechanism runs once, and an
auditor guesses the coins. The better the guesses, the larger epsilon must be.

Design note: three bounds, since each assumes less than the one before and shows less. The f-DP
bound takes the mechanism for a Poisson-sampled Gaussian of *some* noise and finds the largest noise
that the guesses refute; the one-run bound assumes (epsilon, delta)-DP alone; Clopper-Pearson needs
a fresh run for every guess. A lower bound is no proof of privacy: a better auditor may find more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "SampledGaussianFamily",
    "clopper_pearson",
    "f_dp_lower_bound",
    "f_dp_refutes",
    "fewest_refuting",
    "guess",
    "one_run_lower_bound",
    "repeated_lower_bound",
]

InverseBlowUp = Callable[[float], float]
"""y -> the least P[E | one world] that allows P[E | the other] = y, for any event E."""

_INTERVAL = 5e-3
# Lines of slope e^epsilon touch the trade-off curve here; more of them only make it tighter.
_SLOPES = np.concatenate([np.linspace(0.0, 4.0, 161), np.linspace(4.25, 60.0, 113)])
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e4
_BISECTIONS = 12
_MOST_EPSILON = 100.0


@dataclass(frozen=True, slots=True)
class SampledGaussianFamily:
    """All Poisson-sampled Gaussian mechanisms of one q and one number of steps; noise is free.

    Attributes:
        sampling_prob: q in (0, 1].
        num_steps: compositions.
    """

    sampling_prob: float
    num_steps: int

    def epsilon(self, noise_multiplier: float, delta: float) -> float:
        """Epsilon of the member with this noise, rounded down, so that a lower bound stays one."""
        loss = _loss(self.sampling_prob, self.num_steps, noise_multiplier, False)
        return float(loss.get_epsilon_for_delta(delta))

    def inverse_blow_up(self, noise_multiplier: float) -> InverseBlowUp:
        """The member's trade-off curve, never above the truth (so harder to refute)."""
        slopes, deltas = _curve(self.sampling_prob, self.num_steps, noise_multiplier)
        shrink = np.exp(-slopes)
        grow = np.exp(np.minimum(slopes, 700.0))

        def inverse(y: float) -> float:
            return max(
                0.0,
                float(np.max((y - deltas) * shrink)),
                float(np.max(1.0 - deltas - grow * (1.0 - y))),
            )

        return inverse


def f_dp_lower_bound(
    family: SampledGaussianFamily,
    num_canaries: int,
    num_guesses: int,
    num_correct: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """The largest epsilon of a member that the guesses refute; 0 where they refute none.

    Args:
        family: what the mechanism is taken to be, but for its noise.
        num_canaries: m, every one in or out by a fair coin.
        num_guesses: r <= m, fixed before the coins were seen; the others were abstained from.
        num_correct: c <= r.
        delta: at which epsilon is told.
        confidence: 1 - chance that the bound is above the truth.

    Source: Mahloujifar, Melis, Chaudhuri 2024, arXiv:2410.22235, Theorem 4.2 with k = 2.
    """
    _check_counts(num_canaries, num_guesses, num_correct)

    def refuted(noise_multiplier: float) -> bool:
        inverse = family.inverse_blow_up(noise_multiplier)
        return f_dp_refutes(inverse, num_canaries, num_guesses, num_correct, confidence)

    low, high = _LEAST_NOISE, _MOST_NOISE
    if not refuted(high):
        return 0.0
    if refuted(low):
        return min(_MOST_EPSILON, family.epsilon(low, delta))
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return family.epsilon(high, delta)


def f_dp_refutes(
    inverse_blow_up: InverseBlowUp,
    num_canaries: int,
    num_guesses: int,
    num_correct: int,
    confidence: float = 0.95,
) -> bool:
    """Can an f-DP mechanism yield that many right guesses with probability 1 - confidence or less?

    Let p_i be the chance of exactly i right guesses. f-DP ties the right guesses among i or more to
    the wrong ones among i - 1 or more:

        sum_{j >= i} j p_j / m  <=  blow_up( sum_{j >= i-1} (r - j) p_j / m ).

    Starting from a tail of 1 - confidence at c, the least mass below it that keeps all of these is
    added up; if that is more than 1, such a tail cannot be.
    """
    right = (1 - confidence) * num_correct / num_canaries
    wrong = (1 - confidence) * (num_guesses - num_correct) / num_canaries
    for count in range(num_correct - 1, -1, -1):
        needed = inverse_blow_up(right)
        if needed > wrong:
            right += count / (num_guesses - count) * (needed - wrong)
            wrong = needed
        if right + wrong > num_guesses / num_canaries:
            return True
    return False


def fewest_refuting(
    inverse_blow_up: InverseBlowUp, num_canaries: int, num_guesses: int, confidence: float = 0.95
) -> int | None:
    """The fewest right guesses that refute a claim; None where not even all of them do."""
    low, high = num_guesses // 2, num_guesses + 1
    while low < high:
        middle = (low + high) // 2
        if middle <= num_guesses and not f_dp_refutes(
            inverse_blow_up, num_canaries, num_guesses, middle, confidence
        ):
            low = middle + 1
        else:
            high = middle
    return low if low <= num_guesses else None


def one_run_lower_bound(
    num_canaries: int,
    num_guesses: int,
    num_correct: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """The largest epsilon that the guesses refute for any mechanism; arguments as above.

    Its ceiling is that of all guesses right: 1,000 canaries cannot show more than 5.81 at 95 %.

    Source: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, Theorem 5.2.
    """
    _check_counts(num_canaries, num_guesses, num_correct)

    def refuted(epsilon: float) -> bool:
        chance = _one_run_chance(num_canaries, num_guesses, num_correct, epsilon, delta)
        return chance < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, _MOST_EPSILON
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def clopper_pearson(num_hits: int, num_trials: int, confidence: float) -> tuple[float, float]:
    """Two one-sided bounds on a probability, each of which holds with `confidence`.

    Source: Clopper and Pearson 1934.
    """
    miss = 1 - confidence
    low = stats.beta.ppf(miss, num_hits, num_trials - num_hits + 1) if num_hits else 0.0
    high = (
        stats.beta.ppf(1 - miss, num_hits + 1, num_trials - num_hits)
        if num_hits < num_trials
        else 1.0
    )
    return float(low), float(high)


def repeated_lower_bound(
    caught: int,
    num_in: int,
    false_alarms: int,
    num_out: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """Epsilon's lower bound from independent runs, each with one canary that is in or out.

    Args:
        caught: runs with the canary in which it was guessed to be there.
        num_in: runs with the canary.
        false_alarms: runs without it in which it was guessed to be there.
        num_out: runs without it.
        delta: at which epsilon is told.
        confidence: of the bound, both rates together (Bonferroni).

    Source: Jagielski, Ullman, Oprea 2020, arXiv:2006.07709.
    """
    each = 1 - (1 - confidence) / 2
    caught_low, _ = clopper_pearson(caught, num_in, each)
    _, alarm_high = clopper_pearson(false_alarms, num_out, each)
    found = [0.0]
    # Both ways round: (epsilon, delta)-DP binds an event and its opposite.
    for likely, unlikely in ((caught_low, alarm_high), (1 - alarm_high, 1 - caught_low)):
        if likely > delta and unlikely > 0:
            found.append(math.log((likely - delta) / unlikely))
    return max(found)


def guess(scores: NDArray[np.float64], members: NDArray[np.bool_], num_guesses: int) -> int:
    """Call the highest half of r scores members and the lowest half none; how many are right.

    A coin flip between equal scores would be a choice; they keep the order in which they stand.
    """
    order = np.argsort(scores, kind="stable")
    lowest, highest = order[: num_guesses // 2], order[len(order) - (num_guesses + 1) // 2 :]
    return int((~members[lowest]).sum() + members[highest].sum())


def _one_run_chance(m: int, r: int, c: int, epsilon: float, delta: float) -> float:
    """How likely c or more right guesses are at most, under (epsilon, delta)-DP."""
    right_prob = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(c - 1, r, right_prob))
    if not delta or not c:
        return min(1.0, tail)
    below = np.cumsum(stats.binom.pmf(np.arange(c - 1, -1, -1), r, right_prob))
    worst = float(np.max(below / np.arange(1, c + 1)))
    return min(1.0, tail + 2 * m * delta * worst)


@lru_cache(maxsize=256)
def _curve(
    sampling_prob: float, num_steps: int, noise_multiplier: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    loss = _loss(sampling_prob, num_steps, noise_multiplier, True)
    return _SLOPES, np.asarray(loss.get_delta_for_epsilon(list(_SLOPES)), dtype=np.float64)


def _loss(
    sampling_prob: float, num_steps: int, noise_multiplier: float, pessimistic: bool
) -> privacy_loss_distribution.PrivacyLossDistribution:
    """The privacy loss distribution of one member, rounded up or down."""
    whole = sampling_prob >= 1
    # Without sampling, T steps are one step with sqrt(T) less noise, exactly.
    stddev = noise_multiplier / math.sqrt(num_steps) if whole else noise_multiplier
    one = privacy_loss_distribution.from_gaussian_mechanism(
        stddev,
        pessimistic_estimate=pessimistic,
        value_discretization_interval=max(_INTERVAL, 0.002 / stddev**2),
        sampling_prob=min(1.0, sampling_prob),
        use_connect_dots=pessimistic,
    )
    return one if whole else one.self_compose(num_steps)


def _check_counts(num_canaries: int, num_guesses: int, num_correct: int) -> None:
    if not 0 <= num_correct <= num_guesses <= num_canaries or not num_canaries:
        raise ValueError(
            f"{num_correct} of {num_guesses} guesses about {num_canaries} canaries are right; "
            "there must be canaries, no more guesses than canaries and no more right ones than "
            "guesses."
        )
