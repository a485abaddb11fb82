"""Client-level DP in a run: what the server reserves, stores, charges and then uses.

    reserve -> (collect) -> noise, store -> charge -> (use, broadcast)

Design note: noise is drawn once a round. The noised mean is stored with its digest before anybody
sees anything computed from it; a restart finds it and uses those bits, so that a round is never
released with two noises, whose mean would have less of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedot.client.bounds import LARGEST_COUNTED, are_within
from fedot.compression.codec import spec_of
from fedot.config import ClientLevelConfig, Config
from fedot.federation.roll_back import origin
from fedot.federation.rounds import Aggregate, State, from_journal, to_journal
from fedot.journal import Journal
from fedot.messages import RoundTask
from fedot.privacy.accounting import SampledGaussian, calibrate_noise
from fedot.privacy.client_level import (
    ClipRule,
    clip_update,
    clipped_sum_of_updates,
    next_clip_norm,
    noised_mean,
    split_noise,
)
from fedot.privacy.ledger import Ledger
from fedot.privacy.noise import NoiseSource

__all__ = ["DATASET_ID", "ServerNoise", "client_event", "sampling_prob_of"]

logger = logging.getLogger(__name__)

DATASET_ID = "federation"
"""What the server's ledger accounts for: all clients together, one of them the unit."""


def sampling_prob_of(config: Config) -> float:
    """With which probability a client is in a cohort."""
    num_clients = len(config.client_names)
    return (config.federation.cohort_size or num_clients) / num_clients


def client_event(config: Config) -> SampledGaussian:
    """What one round costs a client at most, if all rounds are to stay within the target.

    Without `amplification` a round costs what it costs those who took part in it, for everybody
    may see who did; a client that is drawn less often has spent less.

    Raises:
        BudgetError: no noise is enough.
    """
    settings = config.privacy.client_level
    counted = sampling_prob_of(config) if settings.amplification else 1.0
    noise_multiplier = calibrate_noise(
        counted, config.federation.rounds, settings.target_epsilon, settings.delta
    )
    return SampledGaussian(counted, noise_multiplier, 1)


@dataclass(frozen=True, slots=True)
class ServerNoise:
    """The mechanism of one run.

    Attributes:
        settings: the config's.
        event: what a round costs.
        expected_cohort_size: the divisor.
        ledger: what was spent of all clients' budget.
        make_noise: a fresh source for every round.
    """

    settings: ClientLevelConfig
    event: SampledGaussian
    expected_cohort_size: float
    ledger: Ledger
    make_noise: Callable[[], NoiseSource]

    @staticmethod
    def of_run(
        config: Config, run_folder: Path, make_noise: Callable[[], NoiseSource]
    ) -> ServerNoise | None:
        """The run's mechanism; None where the server adds no noise."""
        if not config.privacy.protects_clients:
            return None
        num_clients = len(config.client_names)
        return ServerNoise(
            settings=config.privacy.client_level,
            event=client_event(config),
            expected_cohort_size=float(config.federation.cohort_size or num_clients),
            ledger=Ledger(run_folder / "server" / "ledger.jsonl"),
            make_noise=make_noise,
        )

    def reserve(self, task: RoundTask) -> None:
        """Hold a round's cost before anybody works for it.

        Raises:
            BudgetError: it is not there any more.
        """
        settings = self.settings
        self.ledger.reserve(
            task.task_id, DATASET_ID, self.event, settings.target_epsilon, settings.delta
        )

    def aggregate(self, journal: Journal, task: RoundTask) -> Aggregate:
        """`release`, as the round loop calls it."""

        def noised(part: State, updates: Sequence[State]) -> tuple[State, dict[str, Any]]:
            change, told = self.release(journal, task, part, updates)
            return change, {"client_level": told}

        return noised

    def release(
        self, journal: Journal, task: RoundTask, part: State, updates: Sequence[State]
    ) -> tuple[State, dict[str, Any]]:
        """The round's noised mean: made and stored now, or the one that is there; then charged.

        Args:
            journal: of the run.
            task: the round's.
            part: what trains, before the round: names and shapes.
            updates: of everybody who answered; nobody is as good as anybody.

        Returns:
            The change in float64, and what may be told about it.
        """
        key = f"noised/{task.round}"
        held = journal.fact(key)
        if held is None:
            change, told = self._noised(self._clip_norm(journal, task.round), part, updates)
            held = {"digest": journal.keep(to_journal(change)), **told}
            journal.note(key, held)
        self.ledger.charge(task.task_id, held["digest"])
        change = from_journal(journal.payload(held["digest"]), spec_of(part))
        told = {name: value for name, value in held.items() if name != "digest"}
        told["epsilon"] = self.ledger.epsilon(DATASET_ID, self.settings.delta)
        return {name: tensor.double() for name, tensor in change.items()}, told

    def _clip_norm(self, journal: Journal, round: int) -> float:
        before = journal.fact(f"noised/{origin(journal, round - 1)}")
        return float(before["next_clip_norm"]) if before else self.settings.l2_clip_norm

    def _noised(
        self, l2_clip_norm: float, part: State, updates: Sequence[State]
    ) -> tuple[State, dict[str, Any]]:
        settings, noise = self.settings, self.make_noise()
        share = settings.clip_noise_share if settings.adaptive else None
        split = split_noise(self.event.noise_multiplier, share)
        flat = [_flat(update) for update in updates]
        summed = clipped_sum_of_updates(
            [clip_update(update, l2_clip_norm) for update in flat], len(_flat(part)), l2_clip_norm
        )
        mean = noised_mean(summed, split.updates, self.expected_cohort_size, noise)
        following, within = l2_clip_norm, None
        if split.bits is not None:
            following, within = next_clip_norm(
                [float(update.norm()) for update in flat],
                l2_clip_norm,
                ClipRule(settings.target_quantile, settings.clip_learning_rate),
                split.bits,
                self.expected_cohort_size,
                noise,
            )
        told = {"l2_clip_norm": l2_clip_norm, "next_clip_norm": following, "within": within}
        return _usable(_shaped(mean, part), l2_clip_norm), told


def _usable(change: State, l2_clip_norm: float) -> State:
    """The noised mean, or none of it where it is so large that no journal could keep its square.

    Refusing it instead would be a release of its own, and the next try one that nobody charged for.
    An empty change is computed from the noised one, so it costs nothing more.
    """
    if are_within(change.values(), LARGEST_COUNTED):
        return change
    logger.warning("the noised mean was too large and left out; l2_clip_norm is %g", l2_clip_norm)
    return {name: torch.zeros_like(tensor) for name, tensor in change.items()}


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All values in one row, names ascending, float64."""
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def _shaped(flat: Tensor, like: Mapping[str, Tensor]) -> State:
    """What `_flat` joined, apart again; float32, since that is what is stored."""
    names = sorted(like)
    parts = flat.float().split([like[name].numel() for name in names])
    return {name: part.view_as(like[name]) for name, part in zip(names, parts, strict=True)}
