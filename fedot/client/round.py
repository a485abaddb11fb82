"""One round at a site, start to end: reserve, train, store, charge; the caller sends.

A kill at any point is safe. Before the update is stored nothing has left, so the round trains again
under the reservation it holds. After that the stored bytes are what is charged and sent, whatever
happens; the round is never trained twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedot.client.chains import state_chain, update_chain
from fedot.client.training import PrivateSettings, TrainingSettings, train, train_privately
from fedot.compression.codec import decode, encode, spec_of
from fedot.config import PrivacyConfig, TrainingConfig
from fedot.data.tokenize import Sequences
from fedot.errors import ProtocolError
from fedot.journal import write_durably
from fedot.messages import ClientInfo, ClientResult, RoundTask, digest_of
from fedot.models.adapters import Adapter, part_names
from fedot.privacy.accounting import SampledGaussian, calibrate_noise
from fedot.privacy.ledger import Ledger
from fedot.privacy.noise import NoiseSource
from fedot.seeds import derive_seed

__all__ = ["Site", "privacy_event", "round_event", "run_round"]

logger = logging.getLogger(__name__)

# Far above any update that trains, below what payloads may hold; also refuses what is not finite.
_LARGEST_CHANGE = 1e9


@dataclass(frozen=True, slots=True)
class Site:
    """One data owner's side.

    Attributes:
        info: name and data set id.
        records: what it trains on; never leaves.
        folder: its ledger and stored updates.
    """

    info: ClientInfo
    records: Sequences
    folder: Path

    @property
    def ledger(self) -> Ledger:
        """What this site has spent."""
        return Ledger(self.folder / "ledger.jsonl")


def run_round(
    site: Site,
    adapter: Adapter,
    task: RoundTask,
    autocast: bool = False,
    make_noise: Callable[[], NoiseSource] = NoiseSource.from_os,
) -> ClientResult:
    """Do one task and return what is to be sent.

    Args:
        site: whose records and ledger.
        adapter: on the bundle's model; its tensors are overwritten.
        task: what the server asks.
        autocast: compute in bfloat16.
        make_noise: a fresh source per round; anything but the default is for tests.

    Raises:
        BudgetError: the data set's budget does not allow the round; nothing was trained.
        ProtocolError: training without DP diverged; nothing was stored.
        WireError: the state that the server sent is not this adapter's.
    """
    event = privacy_event(site, task)
    stored = _stored(site, task)
    if stored is None:
        if event is not None:
            site.ledger.reserve(
                task.task_id,
                site.info.dataset_id,
                event,
                task.privacy.target_epsilon,
                task.privacy.delta,
            )
        update = _trained_update(site, adapter, task, event, autocast, make_noise)
        stored = _store(site, task, update)
    payload, bytes_after = stored
    epsilon = None
    if event is not None:
        site.ledger.charge(task.task_id, digest_of(payload))
        epsilon = site.ledger.epsilon(site.info.dataset_id, task.privacy.delta)
    return ClientResult(
        client=site.info.name,
        round=task.round,
        payload=payload,
        digest=digest_of(payload),
        epsilon=epsilon,
        bytes_after=bytes_after,
        received_bytes=len(task.state),
    )


def privacy_event(site: Site, task: RoundTask) -> SampledGaussian | None:
    """What one round costs this site; None without DP."""
    if not task.privacy.protects_records:
        return None
    planned = task.planned_rounds[site.info.name]
    return round_event(task.training, task.privacy, len(site.records), planned)


def round_event(
    training: TrainingConfig, privacy: PrivacyConfig, num_records: int, planned_rounds: int
) -> SampledGaussian:
    """One of `planned_rounds` rounds that together stay within the target epsilon.

    Raises:
        BudgetError: no noise is enough.
    """
    sampling_prob = min(1.0, training.batch_size / num_records)
    steps = training.steps_per_round
    noise_multiplier = calibrate_noise(
        sampling_prob, steps * planned_rounds, privacy.target_epsilon, privacy.delta
    )
    return SampledGaussian(sampling_prob, noise_multiplier, steps)


def _trained_update(
    site: Site,
    adapter: Adapter,
    task: RoundTask,
    event: SampledGaussian | None,
    autocast: bool,
    make_noise: Callable[[], NoiseSource],
) -> dict[str, Tensor]:
    before = _load_state(adapter, task)
    adapter.train_only(task.trains)
    settings = TrainingSettings(
        num_steps=task.training.steps_per_round,
        batch_size=task.training.batch_size,
        micro_batch_size=task.training.micro_batch_size,
        learning_rate=task.learning_rate,
        weight_decay=task.training.weight_decay,
        optimizer=task.training.optimizer,
        autocast=autocast,
    )
    if event is None:
        seed = derive_seed(task.seed, "order", site.info.name, task.round)
        train(adapter, site.records, settings, torch.Generator().manual_seed(seed))
    else:
        private = PrivateSettings(
            event.sampling_prob, event.noise_multiplier, task.privacy.l2_clip_norm
        )
        train_privately(adapter, site.records, settings, private, make_noise())
    update = _what_moved(adapter, before)
    if all(bool((change.abs() <= _LARGEST_CHANGE).all()) for change in update.values()):
        return update
    if event is None:
        raise ProtocolError(
            f"training of {site.info.name} diverged in round {task.round}: its update is not "
            "finite. Lower training.learning_rate."
        )
    # Under DP a refusal would be a release of its own, and its repetition one that nobody charged
    # for. An empty update is computed from the noised one, so it costs nothing more.
    logger.warning("training diverged in round %d; lower training.learning_rate", task.round)
    return {name: torch.zeros_like(change) for name, change in update.items()}


def _load_state(adapter: Adapter, task: RoundTask) -> dict[str, Tensor]:
    """Put the server's state on the adapter; all of it, or without the half that never changes.

    Raises:
        WireError: it is neither.
    """
    start = adapter.state()
    travels = part_names(start, task.state_part)
    expected = spec_of({name: start[name] for name in travels})
    arrived = decode(task.state, expected, allowed=[state_chain(task.payload)])
    before = {**start, **arrived}
    adapter.load(before)
    return before


def _what_moved(adapter: Adapter, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """After minus before, of what trains.

    Raises:
        ValueError: something else moved, which nobody would be told of and no noise covers.
    """
    trained, update = adapter.trained, {}
    for name, after in adapter.state().items():
        if name in trained:
            update[name] = after - before[name]
        elif not torch.equal(after, before[name]):
            raise ValueError(f"{name} is frozen in this round and moved; nothing was stored.")
    return update


def _update_path(site: Site, task: RoundTask) -> Path:
    return site.folder / "updates" / f"{task.task_id.replace('/', '-')}.update"


def _stored(site: Site, task: RoundTask) -> tuple[bytes, dict[str, int]] | None:
    path = _update_path(site, task)
    if not path.exists():
        return None
    return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def _store(
    site: Site, task: RoundTask, update: Mapping[str, Tensor]
) -> tuple[bytes, dict[str, int]]:
    """Encode and keep; older rounds' updates were sent long ago and go."""
    encoded = encode(update, update_chain(task.payload))
    path = _update_path(site, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.iterdir():
        old.unlink()
    # The payload comes last: while it is missing, nothing counts as stored.
    write_durably(path.with_suffix(".json"), json.dumps(encoded.bytes_after).encode())
    write_durably(path, encoded.payload)
    return encoded.payload, encoded.bytes_after
