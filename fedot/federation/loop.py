"""All rounds of a run, over whatever engine: the same loop in a simulation and over a network.

A kill between any two steps is safe: who answered is settled in the journal before anything is
computed from the updates, and each later step makes the same bits from what the journal holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from fedot.compression.codec import spec_of
from fedot.data.tokenize import Sequences
from fedot.engines.engine import Engine
from fedot.errors import RunStopped
from fedot.evaluation.quality import measure
from fedot.federation.built import Models
from fedot.federation.cohort import run_cohorts
from fedot.federation.roll_back import line_of_roll_back, target
from fedot.federation.rounds import (
    Answers,
    State,
    answers_of,
    collect,
    fewest_updates,
    from_journal,
    next_state,
    part_of,
    plain_aggregate,
    settle,
    to_journal,
)
from fedot.federation.server_noise import ServerNoise
from fedot.federation.server_step import server_step
from fedot.federation.tasks import round_task
from fedot.federation.work import Work
from fedot.messages import RoundTask
from fedot.models.adapters import Adapter

__all__ = ["close_start", "is_over", "run_rounds"]


def close_start(work: Work, models: Models) -> None:
    """Close round 0, the adapter as it is in the bundle, if that is not done yet."""
    journal = work.run.journal
    if journal.last_closed() < 0:
        start = models.on_emulator.state()
        losses = _round_losses(work, models, start)
        journal.close_round(0, to_journal(start), {"round": 0, "cohort": [], "loss": losses})


def is_over(work: Work) -> bool:
    """Are all rounds closed?"""
    return work.run.journal.last_closed() >= work.config.federation.rounds


def run_rounds(work: Work, models: Models, engine: Engine, names: Sequence[str]) -> None:
    """All rounds that are still to do, each closed in the journal.

    Args:
        work: the run.
        models: to measure with; round 0 is closed.
        engine: where clients work.
        names: all clients, drawn or not.

    Raises:
        ProtocolError: a round could not be closed.
        RunStopped: the caller asked for it.
    """
    journal, steering = work.run.journal, work.steering
    cohorts = run_cohorts(work.config, journal, names, work.make_noise)
    noise = ServerNoise.of_run(work.config, work.run.path, work.make_noise)
    expected = spec_of(models.on_emulator.state())
    while not is_over(work):
        _stop_if_asked(work)
        round, started = journal.last_closed() + 1, time.monotonic()
        back = _wanted_roll_back(work)
        if back is None:
            before = from_journal(journal.state(round - 1), expected)
            cohort, run_id = cohorts[round - 1], work.run.run_id
            task = round_task(work.config, run_id, round, before, names, len(cohort))
            state, line = _one_round(work, engine, task, before, cohort, noise)
        else:
            state = from_journal(journal.state(back), expected)
            line = line_of_roll_back(round, back)
        losses, seconds = _round_losses(work, models, state), time.monotonic() - started
        metrics = {**line, "loss": losses, "seconds": seconds}
        journal.close_round(round, to_journal(state), metrics)
        if back is not None:
            steering.roll_back_done(back)
        work.run.write_metrics()
        steering.on_round(metrics)


def _wanted_roll_back(work: Work) -> int | None:
    asked = work.steering.roll_back_to()
    back = target(work.run.journal, asked)
    if asked is not None and back is None:
        work.steering.roll_back_done(asked)
    return back


def _one_round(
    work: Work,
    engine: Engine,
    task: RoundTask,
    before: State,
    cohort: Sequence[str],
    noise: ServerNoise | None,
) -> tuple[State, dict[str, Any]]:
    """Reserve, collect, settle, aggregate, step."""
    config, journal = work.config, work.run.journal
    if noise is not None:
        noise.reserve(task)
    answers = answers_of(journal, task) or _answers(work, engine, task, before, cohort)
    outcome = next_state(
        journal,
        task,
        before,
        cohort,
        answers,
        plain_aggregate(config.federation.num_trimmed)
        if noise is None
        else noise.aggregate(journal, task),
        server_step(journal, config, task.round),
    )
    return outcome.state, outcome.metrics


def _answers(
    work: Work, engine: Engine, task: RoundTask, before: State, cohort: Sequence[str]
) -> Answers:
    journal = work.run.journal
    moves = spec_of(part_of(before, task.trains))
    failed = collect(engine, journal, task, cohort, moves, work.steering.progress)
    # An engine that was told to stop has ended early: that must not settle who takes part.
    _stop_if_asked(work)
    return settle(journal, task, cohort, failed, fewest_updates(work.config, task.quorum))


def _stop_if_asked(work: Work) -> None:
    reason = work.steering.should_stop()
    if reason is not None:
        last = work.run.journal.last_closed()
        raise RunStopped(f"the run was stopped after round {last}: {reason}. It can be resumed.")


def _round_losses(work: Work, models: Models, state: State) -> dict[str, float | None]:
    """How good the adapter is now; `plug_in` and `emulator` exist in simulations only."""
    models.on_full.load(state)
    models.on_emulator.load(state)

    def loss(adapter: Adapter, records: Sequences | None) -> float | None:
        if records is None:
            return None
        value = measure(adapter.model, records, autocast=work.autocast).loss
        return value if math.isfinite(value) else None

    return {
        "proxy": loss(models.on_full, work.yardstick.proxy),
        "emulator": loss(models.on_emulator, work.yardstick.choose),
        "plug_in": loss(models.on_full, work.yardstick.choose),
    }
