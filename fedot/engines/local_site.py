"""What a site needs in memory for a run: its policy's consent, its records, the emulator."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedot.cards import RunCard
from fedot.client.chains import operators_of, update_chain
from fedot.client.round import Site, round_event
from fedot.compression.codec import encode
from fedot.data.records import Record, read_records, split_records
from fedot.data.tokenize import tokenize_records
from fedot.emulator.bundle import read_bundle
from fedot.engines.data_owner import DataOwner
from fedot.errors import WireError
from fedot.models.adapters import Adapter, attach
from fedot.models.anatomy import load_tokenizer, pick_device
from fedot.privacy.accounting import epsilon_of
from fedot.privacy.ledger import Ledger
from fedot.privacy.per_sample import inexact
from fedot.privacy.policy import Request, refuse_unless_allowed

__all__ = ["Offer", "load_adapter_of", "load_site", "weigh"]

logger = logging.getLogger(__name__)

_MOST_SAMPLED = 2**20


@dataclass(frozen=True, slots=True)
class Offer:
    """What a run would do with a site's data set. For the data owner's eyes only.

    Attributes:
        num_records: it would train on.
        update_bytes: about what leaves in a round.
        run_epsilon: what all of the run's rounds cost by themselves; None without DP.
        spent_epsilon: what the data set has spent so far.
        total_epsilon: both together.
        max_epsilon: what the policy allows; None sets no limit.
    """

    num_records: int
    update_bytes: int
    delta: float
    run_epsilon: float | None
    spent_epsilon: float
    total_epsilon: float
    max_epsilon: float | None


def weigh(owner: DataOwner, card: RunCard) -> Offer:
    """What a run would cost a site, if its policy allows it.

    Raises:
        ConfigError: the adapter or the chain is not allowed, or the records cannot be read.
        BudgetError: DP is demanded, or the budget is too small; says what would fit.
    """
    policy, num_records = owner.policy, len(_training_records(owner))
    event = None
    if card.privacy.protects_records and card.planned_rounds:
        event = round_event(card.training, card.privacy, num_records, card.planned_rounds)
    delta = policy.delta
    held = [e for e in Ledger(owner.ledger_file).entries() if e.dataset_id == policy.dataset_id]
    done = sum(entry.key.rpartition("/")[0] == card.run_id for entry in held)
    ahead = card.planned_rounds - done
    if ahead > 0:
        asked = Request(f"{card.run_id}/0", card.adapter, operators_of(card.payload), event, ahead)
        refuse_unless_allowed(policy, asked, held)
    spent = [entry.event for entry in held]
    coming = [replace(event, num_steps=event.num_steps * ahead)] if event and ahead > 0 else []
    return Offer(
        num_records=num_records,
        update_bytes=_update_bytes(card),
        delta=delta,
        run_epsilon=epsilon_of(coming, delta) if event else None,
        spent_epsilon=epsilon_of(spent, delta) if spent else 0.0,
        total_epsilon=epsilon_of(spent + coming, delta) if spent or coming else 0.0,
        max_epsilon=policy.max_epsilon,
    )


def _update_bytes(card: RunCard) -> int:
    """About what an update of this run comes to: that of noise of the same size."""
    sample = min(card.adapter_parameters, _MOST_SAMPLED)
    noise = torch.randn(sample, generator=torch.Generator().manual_seed(0))
    encoded = encode({"update": noise * 1e-3}, update_chain(card.payload), seed=0)
    return round(len(encoded.payload) * card.adapter_parameters / max(1, sample))


def load_site(owner: DataOwner, card: RunCard, bundle: Path) -> Site:
    """The site with its records, as this run's tokenizer reads them.

    One with nothing to learn stays in: if the run were refused for it, a tokenizer could be made
    that tells the server whether a record matches a pattern.
    """
    records, tokenizer = _training_records(owner), load_tokenizer(str(bundle))
    sequences = tokenize_records(records, tokenizer, card.max_tokens)
    empty = int((~sequences.learned.any(dim=1)).sum())
    if empty:
        logger.warning(
            "%d of %d records have no token to learn with this run's tokenizer", empty, len(records)
        )
    return Site(owner.info, sequences, owner.home, owner.policy, owner.ledger_file)


def load_adapter_of(owner: DataOwner, card: RunCard, folder: Path) -> Adapter:
    """The emulator with the run's adapter on it; every file is checked first.

    Raises:
        WireError: the bundle is not what the run said.
    """
    bundle = read_bundle(folder)
    if bundle.adapter.kind != card.adapter:
        raise WireError(
            f"the bundle trains {bundle.adapter.kind} and the run said {card.adapter}; the policy "
            "was asked about that. Ask the model owner."
        )
    model = bundle.load(card.dtype, pick_device(owner.device))
    adapter = attach(model, bundle.adapter, bundle.layer_map)
    reason = inexact(adapter.model) if card.privacy.protects_records else None
    if reason:
        raise WireError(f"the bundle cannot be tuned under DP: {reason} Nothing was trained.")
    return adapter


def _training_records(owner: DataOwner) -> tuple[Record, ...]:
    records, policy = read_records(owner.records, owner.text_field), owner.policy
    return split_records(records, policy.held_out_ratio, policy.held_out_seed, owner.name).train
