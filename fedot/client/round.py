"""One round at a site, start to end: reserve, train, store, charge; the caller sends.

A kill at any point is safe. Before the update is stored nothing has left, so the round trains again
under the reservation it holds. After that the stored bytes are what is charged and sent, whatever
happens; the round is never trained twice. What its chain lost is kept with them for the next round
(`fedot.client.outbox`).
"""

from __future__ import annotations

import fcntl
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedot.client.bounds import LARGEST_SENT, are_within
from fedot.client.chains import feeds_back, operators_of, state_chain, update_chain
from fedot.client.outbox import Outbox, Stored
from fedot.client.training import PrivateSettings, TrainingSettings, train, train_privately
from fedot.compression.codec import decode, encode, encode_with_feedback, spec_of
from fedot.config import PrivacyConfig, TrainingConfig
from fedot.data.tokenize import Sequences
from fedot.errors import BudgetError, ProtocolError
from fedot.messages import ClientInfo, ClientResult, RoundTask
from fedot.models.adapters import Adapter, part_names
from fedot.privacy.accounting import SampledGaussian, calibrate_noise
from fedot.privacy.ledger import Ledger
from fedot.privacy.noise import NoiseSource
from fedot.privacy.policy import Policy, Request, refuse_unless_allowed
from fedot.seeds import derive_seed

__all__ = ["Site", "check_policy", "privacy_event", "round_event", "run_round"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Site:
    """One data owner's side.

    Attributes:
        info: name and data set id.
        records: what it trains on; never leaves.
        folder: its stored updates, and its ledger where it has no other place.
        policy: the data owner's terms; None trusts every task.
        ledger_file: see `folder`.
    """

    info: ClientInfo
    records: Sequences
    folder: Path
    policy: Policy | None = None
    ledger_file: Path | None = None

    @property
    def ledger(self) -> Ledger:
        """What this site has spent."""
        return Ledger(self.ledger_file or self.folder / "ledger.jsonl")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process or thread is at work at this site."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def outbox(self) -> Outbox:
        """What this site has stored to be sent."""
        return Outbox(self.folder / "updates")


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
        BudgetError: the data set's budget or policy does not allow the round; nothing was trained.
        ConfigError: the policy does not allow the adapter or the chain; nothing was trained.
        ProtocolError: training without DP diverged, nothing was stored; or the round's update was
            charged and is gone.
        WireError: the state that the server sent is not this adapter's.
    """
    with site.alone():
        return _round(site, adapter, task, autocast, make_noise)


def _round(
    site: Site,
    adapter: Adapter,
    task: RoundTask,
    autocast: bool,
    make_noise: Callable[[], NoiseSource],
) -> ClientResult:
    event = privacy_event(site, task)
    check_policy(site, task, adapter.spec.kind)
    stored = site.outbox.stored(task)
    if stored is None:
        if event is not None:
            _reserve(site, task, event)
        update = _trained_update(site, adapter, task, event, autocast, make_noise)
        stored = _store(site, task, update)
    epsilon = None
    if event is not None:
        site.ledger.charge(task.task_id, stored.digest)
        epsilon = site.ledger.epsilon(site.info.dataset_id, task.privacy.delta)
    site.outbox.drop_older(task)
    return ClientResult(
        client=site.info.name,
        round=task.round,
        payload=stored.payload,
        digest=stored.digest,
        epsilon=epsilon,
        bytes_after=stored.bytes_after,
        received_bytes=len(task.state),
    )


def check_policy(site: Site, task: RoundTask, adapter: str) -> None:
    """Refuse a task that the site's policy does not allow, before anything is done for it.

    Args:
        site: whose policy and ledger; without a policy every task passes.
        task: any round of a run; its other planned rounds must fit as well.
        adapter: kind of what trains.

    Raises:
        ConfigError: the adapter or the chain is not allowed.
        BudgetError: DP is demanded, or the budget is too small; says what would fit.
    """
    if site.policy is None:
        return
    entries = site.ledger.entries()
    done = {e.key for e in entries if e.key.rpartition("/")[0] == task.run_id} - {task.task_id}
    planned = task.planned_rounds[site.info.name]
    if len(done) >= planned:
        raise BudgetError(
            f"run {task.run_id} was planned for {planned} rounds at {site.info.name}, and as many "
            "are reserved. Nothing was trained; start another run."
        )
    request = Request(
        key=task.task_id,
        adapter=adapter,
        chain=operators_of(task.payload),
        event=privacy_event(site, task),
        num_rounds=planned - len(done),
    )
    refuse_unless_allowed(site.policy, request, entries)


def _reserve(site: Site, task: RoundTask, event: SampledGaussian) -> None:
    """Hold the round's cost; the policy's limit, over all runs, goes before the task's."""
    limit, delta = task.privacy.target_epsilon, task.privacy.delta
    if site.policy is not None:
        limit, delta = site.policy.max_epsilon or math.inf, site.policy.delta
    entry = site.ledger.reserve(task.task_id, site.info.dataset_id, event, limit, delta)
    if entry.digest is not None:
        raise ProtocolError(
            f"{task.task_id} was charged for an update that {site.info.name} no longer has; "
            "training again would be a second release. Start another run."
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
    steps, cap = training.steps_per_round, training.max_batch_size
    # A batch can never have more records than there are.
    capped = (cap, num_records) if cap is not None and cap < num_records else (None, None)
    noise_multiplier = calibrate_noise(
        sampling_prob, steps * planned_rounds, privacy.target_epsilon, privacy.delta, *capped
    )
    return SampledGaussian(sampling_prob, noise_multiplier, steps, *capped)


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
        join_noise=task.training.join_noise,
        autocast=autocast,
    )
    if event is None:
        seed = derive_seed(task.seed, "order", site.info.name, task.round)
        train(adapter, site.records, settings, torch.Generator().manual_seed(seed))
    else:
        private = PrivateSettings(
            event.sampling_prob,
            event.noise_multiplier,
            task.privacy.l2_clip_norm,
            event.max_batch_size,
        )
        train_privately(adapter, site.records, settings, private, make_noise())
    update = _what_moved(adapter, before)
    if are_within(update.values(), LARGEST_SENT):
        return update
    if event is None:
        raise ProtocolError(
            f"training of {site.info.name} diverged in round {task.round}: its update is not "
            f"finite, or has a value above {LARGEST_SENT:g}. Lower training.learning_rate."
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


def _store(site: Site, task: RoundTask, update: Mapping[str, Tensor]) -> Stored:
    """Encode and keep, with what was lost before and what is lost now."""
    chain = update_chain(task.payload)
    # It decides about single last steps only, so it may be known: no privacy rests on it.
    seed = derive_seed(task.seed, "rounding", site.info.name, task.round)
    if not feeds_back(task.payload):
        return site.outbox.store(task, encode(update, chain, seed=seed), None)
    carried = site.outbox.residual(task, spec_of(update), _counts(site, task))
    if carried is not None and not are_within(
        (update[name] + carried[name] for name in update), LARGEST_SENT
    ):
        logger.warning("what round %d was to make up for has diverged; left out", task.round)
        carried = None
    encoded, residual = encode_with_feedback(update, carried, chain, seed=seed)
    return site.outbox.store(task, encoded, residual)


def _counts(site: Site, task: RoundTask) -> Callable[[str, str], bool]:
    """Whether a stored update may be built on: under DP, only once it has been charged."""
    if not task.privacy.protects_records:
        return lambda key, digest: True
    charged = {entry.key: entry.digest for entry in site.ledger.entries()}
    return lambda key, digest: charged.get(key) == digest
