"""What a membership game could find at all: decided by simulation before a coin is tossed.

Design note: how many guesses are best depends on the claim. Few sure ones refute a small epsilon
soonest; a large one needs many. The choice is made here from the claim alone, never from what the
game brought, so the bound holds as it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedot.privacy.audit_bounds import SampledGaussianFamily, fewest_refuting, guess

__all__ = ["GamePlan", "enough_canaries", "likelihood_ratio", "plan_game"]

_GUESSED_RATIOS = (0.1, 0.2, 0.5, 1.0)
# Bugs that the power is told for: noise too small by so much. The last one is no noise.
_TOO_SMALL_BY = (2.0, 4.0, 1e6)
_SIMULATIONS = 60
_MORE_CANARIES = (100, 200, 500, 1000, 2000, 5000, 10_000)
_FEW_SIMULATIONS = 10


@dataclass(frozen=True, slots=True)
class GamePlan:
    """How a game will be judged.

    Attributes:
        num_guesses: r; the other canaries are abstained from.
        fewest_refuting: right guesses that refute the claim; None where not even r of them do.
        power: chance of refuting the claim if noise is half, a quarter, none of what is claimed.
        false_alarm: the same if noise is as claimed, at its worst (simulated).
    """

    num_guesses: int
    fewest_refuting: int | None
    power: dict[str, float]
    false_alarm: float


def likelihood_ratio(
    seen: NDArray[np.float64], sampling_prob: float, noise_multiplier: float
) -> NDArray[np.float64]:
    """The best score of a Gaussian game: log P[seen | in] / P[seen | out].

    Args:
        seen: each canary's own coordinate in each step, in units of C, shape (T, m).
        sampling_prob: q.
        noise_multiplier: z, as claimed.

    Returns:
        One score per canary, shape (m,).
    """
    stay_out = math.log1p(-sampling_prob) if sampling_prob < 1 else -math.inf
    drawn = math.log(sampling_prob) + (2 * seen - 1) / (2 * noise_multiplier**2)
    return np.asarray(np.logaddexp(stay_out, drawn).sum(axis=0), dtype=np.float64)


def plan_game(
    family: SampledGaussianFamily,
    noise_multiplier: float,
    num_canaries: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> GamePlan:
    """Choose the number of guesses with the most power against noise that is too small.

    Args:
        family: q and the number of steps.
        noise_multiplier: z, as claimed.
        num_canaries: m.
        rng: of the simulated games.
        confidence: of the judgement.
    """
    inverse = family.inverse_blow_up(noise_multiplier)
    games = {
        too_small: [
            _play(family, noise_multiplier, noise_multiplier / too_small, num_canaries, rng)
            for _ in range(_SIMULATIONS)
        ]
        for too_small in (1.0, *_TOO_SMALL_BY)
    }
    plans = []
    for ratio in _GUESSED_RATIOS:
        num_guesses = max(2, round(ratio * num_canaries))
        fewest = fewest_refuting(inverse, num_canaries, num_guesses, confidence)
        caught = {
            too_small: float(np.mean([guess(*game, num_guesses) >= fewest for game in played]))
            if fewest is not None
            else 0.0
            for too_small, played in games.items()
        }
        names = ("noise / 2", "noise / 4", "no noise")
        power = dict(zip(names, list(caught.values())[1:], strict=True))
        plans.append(GamePlan(num_guesses, fewest, power, caught[1.0]))
    return max(plans, key=lambda plan: sum(plan.power.values()))


def enough_canaries(
    family: SampledGaussianFamily,
    noise_multiplier: float,
    num_canaries: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> int | None:
    """How many canaries would most likely refute the claim if there were no noise at all.

    Args:
        family: q and the number of steps.
        noise_multiplier: z, as claimed.
        num_canaries: tried first, then larger round numbers.
        rng: of the simulated games.
        confidence: of the judgement.

    Returns:
        The first number that is enough; None where 10,000 are not.
    """
    inverse = family.inverse_blow_up(noise_multiplier)
    for num in (num_canaries, *(more for more in _MORE_CANARIES if more > num_canaries)):
        guesses = [max(2, round(ratio * num)) for ratio in _GUESSED_RATIOS]
        bars = {each: fewest_refuting(inverse, num, each, confidence) for each in guesses}
        bars_met = {each: bar for each, bar in bars.items() if bar is not None}
        if not bars_met:
            continue
        no_noise = noise_multiplier / _TOO_SMALL_BY[-1]
        games = [
            _play(family, noise_multiplier, no_noise, num, rng) for _ in range(_FEW_SIMULATIONS)
        ]
        for each, bar in bars_met.items():
            if np.mean([guess(*game, each) >= bar for game in games]) > 0.5:
                return num
    return None


def _play(
    family: SampledGaussianFamily,
    claimed_noise: float,
    true_noise: float,
    num_canaries: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    shape = (family.num_steps, num_canaries)
    members = rng.random(num_canaries) < 0.5
    drawn = members & (rng.random(shape) < family.sampling_prob)
    seen = drawn + true_noise * rng.standard_normal(shape)
    return likelihood_ratio(seen, family.sampling_prob, claimed_noise), members
