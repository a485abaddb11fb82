"""One federation on this machine, from the config to the summary."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fedot.client.round import Site
from fedot.compression.codec import spec_of
from fedot.config import Config, EmulatorConfig
from fedot.data.tokenize import Sequences
from fedot.emulator.bundle import Bundle, read_bundle, write_bundle
from fedot.engines.local import LocalEngine
from fedot.evaluation.ceiling import full_fine_tuning
from fedot.evaluation.quality import Quality, measure
from fedot.federation.assess import FIVE, kept_quality
from fedot.federation.budget import check_budget
from fedot.federation.cohort import run_cohorts
from fedot.federation.folder import RunFolder, check_out, open_run
from fedot.federation.parts import Parts, load_parts, pooled
from fedot.federation.payloads import settled_once
from fedot.federation.rounds import (
    collect,
    from_journal,
    next_state,
    part_of,
    plain_aggregate,
    to_journal,
)
from fedot.federation.server_noise import ServerNoise
from fedot.federation.server_step import server_step
from fedot.federation.student import student_of
from fedot.federation.summary import summarize
from fedot.federation.tasks import round_task
from fedot.messages import ClientInfo, Progress, no_progress
from fedot.models.adapters import Adapter, attach, save_adapter
from fedot.models.anatomy import load_model
from fedot.models.plug_in import plug_in
from fedot.privacy.noise import NoiseSource

__all__ = ["simulate"]

logger = logging.getLogger(__name__)

OnRound = Callable[[Mapping[str, Any]], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Models:
    """What is in memory while rounds run: one full model, one emulator, an adapter on each."""

    on_full: Adapter
    on_emulator: Adapter
    bundle: Bundle
    autocast: bool


def simulate(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress = no_progress,
    on_round: OnRound = lambda metrics: None,
    make_noise: Callable[[], NoiseSource] = NoiseSource.from_os,
    name: str = "simulation",
) -> dict[str, Any]:
    """Run a whole federation in this process and write everything about it to `out`.

    Args:
        config: the run, checked.
        out: a directory that does not exist yet, or one to `resume`.
        resume: go on where an earlier process stopped; what it finished is not done again.
        progress: is told about every long step.
        on_round: is given each round's metrics as it closes.
        make_noise: privacy noise, a fresh source per client and round; never anything but the
            default outside tests and paired benchmarks.
        name: what the report calls the run.

    Returns:
        What stands in `summary.json`.

    Raises:
        ConfigError: refused before anything was written.
        ProtocolError: a round could not be closed.
    """
    check_out(config, out, resume)
    parts = load_parts(config)
    check_budget(config, parts)
    with open_run(config, out, resume) as run:
        config = settled_once(config, run.journal)
        zero = _timed(run, "evaluation", lambda: _zero_shot(run, parts, progress))
        bundle = _timed(run, "emulator", lambda: _build_bundle(config, parts, run, progress))
        models, general = _timed(
            run, "evaluation", lambda: _load_models(config, parts, bundle, run, progress)
        )
        _timed(
            run,
            "rounds",
            lambda: _run_rounds(config, parts, models, run, progress, on_round, make_noise),
        )
        five = {
            "full_zero_shot": zero,
            **_timed(run, "evaluation", lambda: _tuned(config, parts, models, run, progress)),
        }
        ledgers = {site.info.name: site.ledger for site in _sites(parts, run)}
        server = ServerNoise.of_run(config, run.path, make_noise)
        server_ledger = None if server is None else server.ledger
        summary = summarize(
            config, parts, bundle, run.journal, ledgers, server_ledger, five, general, name
        )
        if make_noise != NoiseSource.from_os:
            summary["notes"]["noise"] = "privacy noise came from the caller: no epsilon is claimed."
        run.write_json("summary.json", summary)
        return summary


def _zero_shot(run: RunFolder, parts: Parts, progress: Progress) -> Quality:
    autocast = parts.model.dtype != torch.float32
    return _measured(run, "full_zero_shot", parts.model, parts.report, autocast, progress)


def _build_bundle(config: Config, parts: Parts, run: RunFolder, progress: Progress) -> Bundle:
    """Compress and distil the middle, and write what clients get; or take what is there."""
    folder = run.path / "bundle"
    if folder.exists():
        return read_bundle(folder)
    emulator = config.emulator
    if not isinstance(emulator, EmulatorConfig):
        built = {"method": "none: the full model is shared"}
        return write_bundle(folder, parts.model, parts.tokenizer, parts.kept, parts.adapter, built)
    student = student_of(config, parts, progress)
    built = {"method": "uniform drop + distillation", **emulator.model_dump(mode="json")}
    return write_bundle(folder, student, parts.tokenizer, parts.kept, parts.adapter, built)


def _load_models(
    config: Config, parts: Parts, bundle: Bundle, run: RunFolder, progress: Progress
) -> tuple[_Models, tuple[Quality, Quality] | None]:
    """Measure both models untuned, then put the adapter on each."""
    autocast = config.model.dtype != "float32"
    emulator = bundle.load(config.model.dtype, parts.device)
    general = None
    if config.emulator != "none":
        _measured(run, "emulator_zero_shot", emulator, parts.report, autocast, progress)
    held_out = parts.owner_held_out
    if config.emulator != "none" and held_out is not None:
        general = (
            _measured(run, "general_full", parts.model, held_out, autocast, progress),
            _measured(run, "general_emulator", emulator, held_out, autocast, progress),
        )
    sizes = {
        "num_blocks": parts.model.config.num_hidden_layers,
        "parameters": emulator.num_parameters(),
        "full_parameters": parts.model.num_parameters(),
    }
    on_emulator = attach(emulator, bundle.adapter, bundle.layer_map)
    run.journal.note("adapter_parameters", on_emulator.num_parameters)
    run.journal.note("sizes", sizes)
    on_full = plug_in(parts.model, bundle.adapter, on_emulator.state())
    return _Models(on_full, on_emulator, bundle, autocast), general


def _run_rounds(
    config: Config,
    parts: Parts,
    models: _Models,
    run: RunFolder,
    progress: Progress,
    on_round: OnRound,
    make_noise: Callable[[], NoiseSource],
) -> None:
    """All rounds that are still to do, each closed in the journal."""
    journal = run.journal
    sites = _sites(parts, run)
    engine = LocalEngine(models.on_emulator, sites, models.autocast, make_noise)
    names = [info.name for info in engine.clients()]
    federation = config.federation
    cohorts = run_cohorts(config, journal, names, make_noise)
    server_noise = ServerNoise.of_run(config, run.path, make_noise)
    expected = spec_of(models.on_emulator.state())
    if journal.last_closed() < 0:
        start = models.on_emulator.state()
        losses = _round_losses(config, parts, models, start)
        journal.close_round(0, to_journal(start), {"round": 0, "cohort": [], "loss": losses})
    for round in range(journal.last_closed() + 1, federation.rounds + 1):
        started = time.monotonic()
        state = from_journal(journal.state(round - 1), expected)
        task = round_task(config, run.run_id, round, state, names)
        if server_noise is not None:
            server_noise.reserve(task)
        cohort = cohorts[round - 1]
        moves = spec_of(part_of(state, task.trains))
        failed = collect(engine, journal, task, cohort, moves, progress)
        outcome = next_state(
            journal,
            task,
            state,
            cohort,
            failed,
            plain_aggregate(round, federation.num_trimmed, failed)
            if server_noise is None
            else server_noise.aggregate(journal, task),
            server_step(journal, config, round),
        )
        metrics = {
            **outcome.metrics,
            "loss": _round_losses(config, parts, models, outcome.state),
            "seconds": time.monotonic() - started,
        }
        journal.close_round(round, to_journal(outcome.state), metrics)
        run.write_metrics()
        on_round(metrics)
    # Once more: a kill may have come between the last round's end and its line.
    run.write_metrics()


def _round_losses(
    config: Config, parts: Parts, models: _Models, state: dict[str, torch.Tensor]
) -> dict[str, float | None]:
    """How good the adapter is now; `plug_in` and `emulator` exist in simulations only."""
    models.on_full.load(state)
    models.on_emulator.load(state)

    def loss(adapter: Adapter, records: Sequences) -> float | None:
        value = measure(adapter.model, records, autocast=models.autocast).loss
        return value if math.isfinite(value) else None

    return {
        "proxy": loss(models.on_full, parts.proxy) if parts.proxy is not None else None,
        "emulator": loss(models.on_emulator, parts.choose),
        "plug_in": loss(models.on_full, parts.choose),
    }


def _tuned(
    config: Config, parts: Parts, models: _Models, run: RunFolder, progress: Progress
) -> dict[str, Quality | None]:
    """Write the last and the best adapter; measure the best one, and the ceiling."""
    journal, shared = run.journal, config.emulator == "none"
    best = _best_round(config, journal.metrics())
    journal.note("best_round", best)
    expected = spec_of(models.on_emulator.state())
    for folder, round in (("adapter", journal.last_closed()), ("adapter-best", best)):
        state = from_journal(journal.state(round), expected)
        save_adapter(run.path / folder, models.bundle.adapter, state, config.model.path)
    models.on_full.load(state)
    models.on_emulator.load(state)
    report, autocast = parts.report, models.autocast
    five: dict[str, Quality | None] = dict.fromkeys(FIVE)
    del five["full_zero_shot"]
    five["plug_in"] = _measured(run, "plug_in", models.on_full.model, report, autocast, progress)
    if not shared:
        five["emulator_zero_shot"] = Quality.from_json(journal.fact("quality/emulator_zero_shot"))
        five["emulator_tuned"] = _measured(
            run, "emulator_tuned", models.on_emulator.model, report, autocast, progress
        )
    if config.evaluation.ceiling_learning_rates:
        five["full_tuned"] = kept_quality(
            journal, "full_tuned", lambda: _ceiling(config, parts, run, autocast, progress)
        )
    return five


def _ceiling(
    config: Config, parts: Parts, run: RunFolder, autocast: bool, progress: Progress
) -> Quality:
    best = full_fine_tuning(
        lambda: load_model(config.model.path, config.model.dtype, parts.device),
        pooled(list(parts.train.values())),
        parts.choose,
        parts.report,
        learning_rates=config.evaluation.ceiling_learning_rates,
        max_epochs=config.evaluation.ceiling_epochs,
        batch_size=config.evaluation.ceiling_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        seed=config.seed,
        autocast=autocast,
        progress=progress,
    )
    run.journal.note("ceiling", {"learning_rate": best.learning_rate, "epoch": best.epoch})
    return best.quality


def _best_round(config: Config, metrics: Sequence[dict[str, Any]]) -> int:
    """The round whose adapter is kept as the best.

    Clients' held-out records choose only without DP: under DP a choice by private records would be
    a release that nobody charged for. There the owner's proxy set chooses, or it is the last.
    """
    rounds = [line for line in metrics if line["round"] > 0]
    if config.privacy.unit == "none":
        key = "plug_in"
    elif config.data.proxy is not None:
        key = "proxy"
    else:
        return int(rounds[-1]["round"])

    def loss(line: dict[str, Any]) -> float:
        value = line["loss"][key]
        return math.inf if value is None else float(value)

    return int(min(rounds, key=loss)["round"])


def _sites(parts: Parts, run: RunFolder) -> list[Site]:
    sites = []
    for name, records in parts.train.items():
        policy = parts.policies.get(name)
        info = ClientInfo(name, dataset_id=policy.dataset_id if policy else name)
        sites.append(Site(info, records, run.path / "sites" / name, policy))
    return sites


def _measured(
    run: RunFolder,
    key: str,
    model: torch.nn.Module,
    records: Sequences,
    autocast: bool,
    progress: Progress,
) -> Quality:
    stage = f"measure {key.replace('_', ' ')}"
    return kept_quality(
        run.journal,
        key,
        lambda: measure(model, records, autocast=autocast, progress=progress, stage=stage),
    )


def _timed(run: RunFolder, stage: str, work: Callable[[], T]) -> T:
    """Add a step's wall time to the run's, over restarts."""
    started = time.monotonic()
    try:
        return work()
    finally:
        seconds = run.journal.fact("seconds") or {"emulator": 0.0, "rounds": 0.0, "evaluation": 0.0}
        seconds[stage] += time.monotonic() - started
        run.journal.note("seconds", seconds)
