"""What an audit runs: small federations with canaries in them, in memory and in a temporary folder.

A canary run never touches a site's ledger: every federation here has sites of its own, in a folder
that is thrown away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedot.aggregation.means import trimmed_mean
from fedot.client.chains import update_chain
from fedot.client.round import Site, round_event
from fedot.compression.codec import decode, spec_of
from fedot.config import Config, PrivacyConfig
from fedot.data.tokenize import Sequences
from fedot.emulator.bundle import read_bundle
from fedot.engines.local import LocalEngine
from fedot.errors import ProtocolError
from fedot.federation.cohort import draw_cohorts, most_rounds
from fedot.federation.parts import Parts, pooled
from fedot.federation.rounds import part_of
from fedot.federation.server_step import server_step
from fedot.federation.student import student_of
from fedot.federation.tasks import round_task
from fedot.federation.turns import state_part
from fedot.journal import Journal
from fedot.messages import ClientFailure, ClientInfo, Progress
from fedot.models.adapters import Adapter, attach
from fedot.privacy.accounting import SampledGaussian

__all__ = ["World", "audited_adapter", "federate", "joined", "without_dp"]

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class World:
    """A federation that was run.

    Attributes:
        state: the adapter that it released.
        spent: by client name, what its updates cost; empty without DP.
    """

    state: State
    spent: dict[str, SampledGaussian]


def audited_adapter(
    config: Config, parts: Parts, bundle: Path | None, progress: Progress
) -> Adapter:
    """The adapter on what clients train: a run's bundle, or an emulator made now."""
    if bundle is not None:
        found = read_bundle(bundle)
        model = found.load(config.model.dtype, parts.device)
        return _what_is_released(attach(model, found.adapter, found.layer_map), config)
    student = student_of(config, parts, progress)
    return _what_is_released(attach(student, parts.adapter, parts.kept), config)


def _what_is_released(adapter: Adapter, config: Config) -> Adapter:
    """Leave frozen what never trains: no update holds it."""
    adapter.train_only(state_part(config.adapter))
    return adapter


def federate(
    config: Config,
    adapter: Adapter,
    train: Mapping[str, Sequences],
    progress: Progress,
    stage: str,
) -> World:
    """All rounds of a config with the real client code, from the adapter's own start.

    Args:
        config: rounds, training, privacy and payload; its data are not read.
        adapter: on what clients train; ends with the state that it started from.
        train: client name -> its records.
        progress: is told at the start and after every client.
        stage: what progress calls it.

    Raises:
        ProtocolError: a client could not do its part.
    """
    start, federation = adapter.state(), config.federation
    size = min(federation.cohort_size or len(train), len(train))
    federation = federation.model_copy(update={"cohort_size": size})
    config, names = config.model_copy(update={"federation": federation}), list(train)
    cohorts = draw_cohorts(config.seed, federation.rounds, names, size)
    planned, state = most_rounds(config, names), dict(start)
    with (
        tempfile.TemporaryDirectory(prefix="fedot-audit-") as folder,
        Journal(Path(folder) / "journal.sqlite") as journal,
    ):
        sites = [Site(ClientInfo(n, n), rows, Path(folder) / n) for n, rows in train.items()]
        engine = LocalEngine(adapter, sites, config.model.dtype != "float32")
        progress(stage, 0, len(cohorts) * size)
        for round, cohort in enumerate(cohorts, start=1):
            task = round_task(config, "audit", round, state, names, len(cohorts[round - 1]))
            moves, updates = spec_of(part_of(state, task.trains)), []
            for result in engine.run(task, cohort):
                if isinstance(result, ClientFailure):
                    raise ProtocolError(f"{stage}: {result.client} failed: {result.reason}")
                chain = [update_chain(config.payload)]
                updates.append(decode(result.payload, moves, allowed=chain))
                done = (round - 1) * len(cohort) + len(updates)
                progress(stage, done, len(cohorts) * len(cohort))
            # A reference has one client, of whom nothing can be trimmed.
            change = trimmed_mean(updates, min(federation.num_trimmed, (len(updates) - 1) // 2))
            added = server_step(journal, config, round)(change)
            state |= {n: (state[n].double() + step).float() for n, step in added.items()}
    adapter.load(start)
    adapter.train_only(state_part(config.adapter))
    return World(state, _spent(config, train, planned))


def without_dp(config: Config) -> Config:
    """The same federation with no noise and no clipping."""
    privacy = PrivacyConfig(**{**config.privacy.model_dump(), "unit": "none"})
    return config.model_copy(update={"privacy": privacy})


def joined(*parts: Sequences) -> Sequences:
    """Records of several kinds in one."""
    return pooled(list(parts))


def _spent(
    config: Config, train: Mapping[str, Sequences], planned: Mapping[str, int]
) -> dict[str, SampledGaussian]:
    if not config.privacy.protects_records:
        return {}
    spent = {}
    for name, rounds in planned.items():
        one = round_event(config.training, config.privacy, len(train[name]), rounds)
        steps = one.num_steps * rounds
        spent[name] = SampledGaussian(one.sampling_prob, one.noise_multiplier, steps)
    return spent
