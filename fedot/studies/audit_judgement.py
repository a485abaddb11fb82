"""What an audit's figures say about a claim, and which of them refute it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedot.client.training import PrivateSettings
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.privacy.accounting import SampledGaussian
from fedot.privacy.audit_bounds import (
    SampledGaussianFamily,
    f_dp_lower_bound,
    guess,
    one_run_lower_bound,
)
from fedot.privacy.audit_power import enough_canaries, plan_game
from fedot.privacy.noise import NoiseSource
from fedot.studies.canaries import Train, play_gradient_game

__all__ = ["CONFIDENCE", "bounds", "findings", "game_figures", "too_few"]

CONFIDENCE = 0.95
# A false alarm of the sampling check, once in so many audits of right code.
_SAMPLING_ALPHA = 1e-4
# Above 1 by more than rounding of float32 sums.
_SENSITIVITY_SLACK = 1e-3


def game_figures(
    trainer: Train,
    adapter: Adapter | None,
    records: Sequences | None,
    private: PrivateSettings,
    num_steps: int,
    num_canaries: int,
    delta: float,
    rng: torch.Generator,
    noise: NoiseSource | None = None,
) -> dict[str, Any]:
    """Play one gradient game and judge it against the claim that q, z and the steps make.

    Args:
        trainer: what is audited; the rest as in `play_gradient_game`.
        adapter: real weights beside the canaries, or None.
        records: real records, or None.
        private: q, z and C as claimed.
        num_steps: T.
        num_canaries: m.
        delta: at which epsilon is told.
        rng: of coins and simulated games.
        noise: None for a fresh source.
    """
    claim = SampledGaussian(private.sampling_prob, private.noise_multiplier, num_steps)
    simulated = np.random.default_rng(int(torch.randint(2**31, (1,), generator=rng)))
    family = SampledGaussianFamily(claim.sampling_prob, num_steps)
    plan = plan_game(family, claim.noise_multiplier, num_canaries, simulated, CONFIDENCE)
    source = noise or NoiseSource.from_os()
    scores, members = play_gradient_game(
        trainer, adapter, records, private, num_steps, num_canaries, rng, source
    )
    correct = guess(scores, members, plan.num_guesses)
    figures = bounds(num_canaries, plan.num_guesses, correct, claim, delta)
    return {
        **figures,
        "fewest_refuting": plan.fewest_refuting,
        "refuted": plan.fewest_refuting is not None and correct >= plan.fewest_refuting,
        "power": plan.power,
    }


def bounds(
    num_canaries: int, num_guesses: int, correct: int, claim: SampledGaussian | None, delta: float
) -> dict[str, Any]:
    """Lower bounds and their ceilings; without a claim there is no family, so one bound only.

    Args:
        num_canaries: m.
        num_guesses: r.
        correct: right ones.
        claim: what is claimed, all steps together; None for none.
        delta: at which epsilon is told.
    """
    counts = (num_canaries, num_guesses)
    figures: dict[str, Any] = {
        "canaries": num_canaries,
        "guesses": num_guesses,
        "correct": correct,
        "one_run_bound": one_run_lower_bound(*counts, correct, delta, CONFIDENCE),
        "one_run_ceiling": one_run_lower_bound(
            num_canaries, num_canaries, num_canaries, delta, CONFIDENCE
        ),
        "lower_bound": None,
        "ceiling": None,
    }
    if claim is not None:
        family = SampledGaussianFamily(claim.sampling_prob, claim.num_steps)
        figures["lower_bound"] = f_dp_lower_bound(family, *counts, correct, delta, CONFIDENCE)
        figures["ceiling"] = f_dp_lower_bound(family, *counts, num_guesses, delta, CONFIDENCE)
    return figures


def too_few(claim: SampledGaussian, num_canaries: int, seed: int) -> str:
    """Why so many gradient canaries can show nothing, and how many could; empty if they can."""
    family = SampledGaussianFamily(claim.sampling_prob, claim.num_steps)
    enough = enough_canaries(
        family, claim.noise_multiplier, num_canaries, np.random.default_rng(seed), CONFIDENCE
    )
    if enough == num_canaries:
        return ""
    needed = "10,000 are not enough" if enough is None else f"about {enough:,} are needed"
    advice = "" if enough is None else f": --canaries {enough}"
    return (
        f"! {num_canaries} canaries are too few for this claim: even a run without any noise would "
        f"most likely not be refuted; {needed}{advice}"
    )


def findings(found: Mapping[str, Any]) -> list[str]:
    """What refutes the claim; empty where nothing did."""
    claim, game, checks = found["claim"], found["gradient_canaries"], found["mechanism"]
    if claim is None:
        return []
    told = []
    games = {"gradient canaries": game, "text canaries": found["text_canaries"]["on"]}
    for name, figures in games.items():
        if figures["lower_bound"] > claim["epsilon"]:
            told.append(
                f"{name} show an epsilon of at least {figures['lower_bound']:.2f}, above the "
                f"{claim['epsilon']:.2f} that is claimed."
            )
    if game["repeated"]["lower_bound"] > claim["epsilon"]:
        told.append(
            f"repeated games show an epsilon of at least {game['repeated']['lower_bound']:.2f}, "
            f"above the {claim['epsilon']:.2f} that is claimed."
        )
    if checks["sensitivity"] > 1 + _SENSITIVITY_SLACK:
        told.append(
            f"one record moves a step's sum by {checks['sensitivity']:.2f} times the clip norm; "
            "noise is too small by that factor."
        )
    sampling = checks["sampling"]
    if sampling is not None and sampling["p_value"] < _SAMPLING_ALPHA:
        told.append(
            f"batches are not Poisson samples (p = {sampling['p_value']:.1e}, variance of their "
            f"sizes {sampling['size_variance_ratio']:.2f} of the expected one); the amplification "
            "that epsilon counts on is not there."
        )
    return told
