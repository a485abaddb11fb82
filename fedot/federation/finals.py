"""The end of a run: its last and best adapter, and how good the best one is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedot.compression.codec import spec_of
from fedot.config import Config
from fedot.evaluation.quality import Quality
from fedot.federation.built import Models
from fedot.federation.rounds import from_journal
from fedot.federation.work import Work, measured
from fedot.models.adapters import save_adapter

__all__ = ["best_round", "tuned"]


def tuned(work: Work, models: Models) -> dict[str, Quality | None]:
    """Write the last and the best adapter, and measure the best one in both models."""
    journal, report = work.run.journal, work.yardstick.report
    best = best_round(work.config, journal.metrics())
    journal.note("best_round", best)
    expected = spec_of(models.on_emulator.state())
    for folder, round in (("adapter", journal.last_closed()), ("adapter-best", best)):
        state = from_journal(journal.state(round), expected)
        save_adapter(work.run.path / folder, models.bundle.adapter, state, work.config.model.path)
    models.on_full.load(state)
    models.on_emulator.load(state)
    plug_in = measured(work, "plug_in", models.on_full.model, report)
    if work.config.emulator == "none":
        return {"plug_in": plug_in, "emulator_zero_shot": None, "emulator_tuned": None}
    zero = journal.fact("quality/emulator_zero_shot")
    return {
        "plug_in": plug_in,
        "emulator_zero_shot": Quality.from_json(zero) if zero is not None else None,
        "emulator_tuned": measured(work, "emulator_tuned", models.on_emulator.model, report),
    }


def best_round(config: Config, metrics: Sequence[dict[str, Any]]) -> int:
    """The round whose adapter is kept as the best.

    Clients' held-out records choose only in a simulation without DP: under DP a choice by private
    records would be a release that nobody charged for. Elsewhere the owner's proxy set chooses, or
    it is the last.
    """
    rounds = [line for line in metrics if line["round"] > 0]
    if config.privacy.unit == "none" and config.data.clients:
        key = "plug_in"
    elif config.data.proxy is not None:
        key = "proxy"
    else:
        return int(rounds[-1]["round"])

    def loss(line: dict[str, Any]) -> float:
        value = line["loss"][key]
        return math.inf if value is None else float(value)

    return int(min(rounds, key=loss)["round"])
