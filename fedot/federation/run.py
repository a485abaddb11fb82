"""One federation on this machine, from the config to the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from fedot.client.round import Site
from fedot.config import Config
from fedot.engines.local import LocalEngine
from fedot.evaluation.ceiling import full_fine_tuning
from fedot.evaluation.quality import Quality
from fedot.federation.assess import kept_quality
from fedot.federation.budget import check_budget
from fedot.federation.folder import RunFolder, check_out, open_run
from fedot.federation.parts import Parts, load_parts, pooled
from fedot.federation.payloads import settled_once
from fedot.federation.server_noise import ServerNoise
from fedot.federation.summary import ledger_privacy, summarize
from fedot.federation.whole_run import run_whole
from fedot.federation.work import OnRound, Steering, Work, Yardstick, timed
from fedot.messages import ClientInfo, Progress, no_progress
from fedot.models.anatomy import load_model
from fedot.privacy.noise import NoiseSource

__all__ = ["simulate"]


@contextmanager
def _without_bars() -> Iterator[None]:
    """No bar of transformers' for every checkpoint; the caller's setting comes back."""
    before = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True})
    )
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


@_without_bars()
def simulate(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress = no_progress,
    on_round: OnRound = lambda metrics: None,
    roll_back_to: Callable[[], int | None] = lambda: None,
    roll_back_done: Callable[[int], None] = lambda round: None,
    should_stop: Callable[[], str | None] = lambda: None,
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
        roll_back_to: asked before every round for a closed round to go back to, again and again
            until `roll_back_done` is told it.
        roll_back_done: see there; `fedot.federation.roll_back` says what going back is.
        should_stop: asked for a reason to stop; the run can be resumed.
        make_noise: privacy noise, a fresh source per client and round; never anything but the
            default outside tests and paired benchmarks.
        name: what the report calls the run.

    Returns:
        What stands in `summary.json`.

    Raises:
        ConfigError: refused before anything was written.
        ProtocolError: a round could not be closed.
        RunStopped: `should_stop` gave a reason.
    """
    check_out(config, out, resume)
    parts = load_parts(config)
    check_budget(config, parts)
    steering = Steering(progress, on_round, roll_back_to, roll_back_done, should_stop)
    yardstick = Yardstick(parts.choose, parts.report, parts.proxy)
    with open_run(config, out, resume) as run:
        config = settled_once(config, run.journal)
        sites = _sites(parts, run)
        work = Work(config, parts, yardstick, run, steering, make_noise)
        outcome = run_whole(
            work,
            sorted(parts.train),
            lambda models: LocalEngine(models.on_emulator, sites, work.autocast, make_noise),
        )
        if config.evaluation.ceiling_learning_rates:
            outcome.five["full_tuned"] = timed(run, "evaluation", lambda: _ceiling(work, parts))
        ledgers = {site.info.name: site.ledger for site in sites}
        server = ServerNoise.of_run(config, run.path, make_noise)
        summary = summarize(
            config,
            outcome,
            run.journal,
            ledger_privacy(config, ledgers),
            None if server is None else server.ledger,
            _notes(parts),
            name,
        )
        if make_noise != NoiseSource.from_os:
            summary["notes"]["noise"] = "privacy noise came from the caller: no epsilon is claimed."
        run.write_json("summary.json", summary)
        return summary


def _ceiling(work: Work, parts: Parts) -> Quality:
    return kept_quality(work.run.journal, "full_tuned", lambda: _fine_tuned(work, parts))


def _fine_tuned(work: Work, parts: Parts) -> Quality:
    config = work.config
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
        autocast=work.autocast,
        progress=work.steering.progress,
    )
    work.run.journal.note("ceiling", {"learning_rate": best.learning_rate, "epoch": best.epoch})
    return best.quality


def _notes(parts: Parts) -> dict[str, str]:
    silent = [name for name, policy in parts.policies.items() if not policy.metrics_may_leave]
    if not silent:
        return {}
    return {
        "measured": f"held-out records of {', '.join(silent)} are in no loss: their policies keep "
        "metrics at home."
    }


def _sites(parts: Parts, run: RunFolder) -> list[Site]:
    sites = []
    for name, records in parts.train.items():
        policy = parts.policies.get(name)
        info = ClientInfo(name, dataset_id=policy.dataset_id if policy else name)
        sites.append(Site(info, records, run.path / "sites" / name, policy))
    return sites
