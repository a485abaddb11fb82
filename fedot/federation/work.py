"""What every step of one open run gets: its inputs, its folder, and who watches and steers it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from fedot.config import Config
from fedot.data.tokenize import Sequences
from fedot.evaluation.quality import Quality, measure
from fedot.federation.assess import kept_quality
from fedot.federation.folder import RunFolder
from fedot.federation.parts import OwnerParts
from fedot.messages import Progress, no_progress
from fedot.privacy.noise import NoiseSource

__all__ = ["OnRound", "Steering", "Work", "Yardstick", "measured", "timed"]

OnRound = Callable[[Mapping[str, Any]], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What quality is measured on; None where there is nothing of the kind.

    Attributes:
        choose: clients' held-out records that may choose the best round; simulations only.
        report: what the five numbers are measured on. It has chosen nothing.
        proxy: the owner's stand-in for the task, measured every round.
    """

    choose: Sequences | None
    report: Sequences | None
    proxy: Sequences | None


@dataclass(frozen=True, slots=True)
class Steering:
    """How the caller follows a run and takes part in it.

    Attributes:
        progress: is told about every long step.
        on_round: is given each round's metrics as it closes.
        roll_back_to: asked before every round; the closed round to go back to, or None.
        roll_back_done: is told such a round once the run has gone back to it for good, or found
            nothing to do. A kill may come in between: the same request then finds nothing to do.
        should_stop: asked before every round and when its updates are in; a reason ends the run,
            which can be resumed.
    """

    progress: Progress = no_progress
    on_round: OnRound = lambda metrics: None
    roll_back_to: Callable[[], int | None] = lambda: None
    roll_back_done: Callable[[int], None] = lambda round: None
    should_stop: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Work:
    """One open run.

    Attributes:
        config: its chain settled, and over the network its sites.
        make_noise: of the server's own noise, a fresh source per round.
    """

    config: Config
    parts: OwnerParts
    yardstick: Yardstick
    run: RunFolder
    steering: Steering
    make_noise: Callable[[], NoiseSource]

    @property
    def autocast(self) -> bool:
        """Are models computed in bfloat16?"""
        return self.config.model.dtype != "float32"


def measured(work: Work, key: str, model: nn.Module, records: Sequences | None) -> Quality | None:
    """A model's quality, measured once per run; None without records."""
    if records is None:
        return None
    progress, stage = work.steering.progress, f"measure {key.replace('_', ' ')}"
    return kept_quality(
        work.run.journal,
        key,
        lambda: measure(model, records, autocast=work.autocast, progress=progress, stage=stage),
    )


def timed(run: RunFolder, stage: str, work: Callable[[], T]) -> T:
    """Add a step's wall time to the run's, over restarts."""
    started = time.monotonic()
    try:
        return work()
    finally:
        seconds = run.journal.fact("seconds") or {"emulator": 0.0, "rounds": 0.0, "evaluation": 0.0}
        seconds[stage] += time.monotonic() - started
        run.journal.note("seconds", seconds)
