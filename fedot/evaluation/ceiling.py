"""Full fine-tuning on pooled data: what an owner could reach who saw every record.

The honest ceiling that recovery is measured against: all blocks train, the best of a small grid of
learning rates is taken, and training stops where held-out records say so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from fedot.client.training import TrainingSettings, train
from fedot.data.tokenize import Sequences
from fedot.evaluation.quality import Quality, measure
from fedot.messages import Progress, no_progress
from fedot.models.adapters import AdapterSpec, attach
from fedot.models.anatomy import anatomy_of
from fedot.seeds import derive_seed

__all__ = ["Ceiling", "full_fine_tuning"]

logger = logging.getLogger(__name__)

_STAGE = "full fine-tuning (the ceiling)"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The best that full fine-tuning reached, and where in the grid that was.

    Attributes:
        quality: on `report_on`.
        learning_rate: of the best trial; None when nothing beat the untuned model.
        epoch: after which the best state was seen, counted from 1.
    """

    quality: Quality
    learning_rate: float | None
    epoch: int


def full_fine_tuning(
    load: Callable[[], PreTrainedModel],
    train_on: Sequences,
    choose_on: Sequences,
    report_on: Sequences,
    *,
    learning_rates: Sequence[float],
    max_epochs: int,
    batch_size: int,
    micro_batch_size: int,
    seed: int,
    autocast: bool = False,
    progress: Progress = no_progress,
) -> Ceiling:
    """Tune all blocks on all records and measure the best state seen.

    Args:
        load: makes a fresh full model; called once.
        train_on: all clients' training records.
        choose_on: held-out records that stop training and choose the learning rate.
        report_on: held-out records that the result is measured on.
        learning_rates: the grid.
        max_epochs: at most; each trial stops after an epoch that does not improve.
        batch_size: records a step.
        micro_batch_size: most records in one forward pass.
        seed: of the order of records.
        autocast: compute in bfloat16.
        progress: is told at the start and after every epoch.
    """
    total = len(learning_rates) * max_epochs
    progress(_STAGE, 0, total)
    model = load()
    blocks = tuple(range(anatomy_of(model).num_blocks))
    adapter = attach(model, AdapterSpec("blocks", blocks), blocks)
    start = adapter.state()
    best_loss, best_state = measure(model, choose_on, micro_batch_size, autocast).loss, start
    best_rate, best_epoch = None, 0
    steps = math.ceil(len(train_on) / batch_size)
    for trial, learning_rate in enumerate(learning_rates):
        adapter.load(start)
        trial_loss = math.inf
        for epoch in range(max_epochs):
            rate = learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / max_epochs))
            settings = TrainingSettings(
                steps, batch_size, micro_batch_size, rate, autocast=autocast
            )
            rng = torch.Generator().manual_seed(derive_seed(seed, "ceiling", trial, epoch))
            train(adapter, train_on, settings, rng)
            loss = measure(model, choose_on, micro_batch_size, autocast).loss
            progress(_STAGE, trial * max_epochs + epoch + 1, total)
            if loss < best_loss:
                best_loss, best_state = loss, adapter.state()
                best_rate, best_epoch = learning_rate, epoch + 1
            if loss >= trial_loss:
                if trial == len(learning_rates) - 1:
                    progress(_STAGE, total, total)
                break
            trial_loss = loss
    adapter.load(best_state)
    return Ceiling(measure(model, report_on, micro_batch_size, autocast), best_rate, best_epoch)
