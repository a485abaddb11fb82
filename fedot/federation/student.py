"""The emulator that a run's clients train on, before it is written or anything is put on it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from fedot.config import Config, EmulatorConfig
from fedot.emulator.distill import distill
from fedot.federation.parts import OwnerParts
from fedot.messages import Progress
from fedot.models.anatomy import shallower
from fedot.seeds import derive_seed

__all__ = ["student_of"]


def student_of(config: Config, parts: OwnerParts, progress: Progress) -> PreTrainedModel:
    """A copy of the kept blocks, its middle distilled; every block with `emulator: none`.

    Args:
        config: emulator, adapter and seed.
        parts: the full model, what is kept of it, and the owner's text.
        progress: is told after every step of distillation.
    """
    student = shallower(parts.model, parts.kept)
    emulator = config.emulator
    if not isinstance(emulator, EmulatorConfig) or parts.owner_train is None:
        return student
    if emulator.distill_steps:
        distill(
            parts.model,
            student,
            config.adapter.num_end_blocks,
            parts.owner_train,
            num_steps=emulator.distill_steps,
            batch_size=emulator.batch_size,
            learning_rate=emulator.learning_rate,
            hidden_weight=emulator.hidden_weight,
            rng=torch.Generator().manual_seed(derive_seed(config.seed, "distill")),
            progress=progress,
        )
    return student
