"""One federation over the network, at the model owner: the same loop without any client's records.

Where clients work is the caller's engine; no network code here. Quality is measured on the owner's
proxy set: half of it, every other record, chooses the best round and the other half reports, so
that no number was chosen to be good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedot.config import Config, config_from_dict
from fedot.emulator.bundle import Bundle
from fedot.emulator.manifest import bundle_digest
from fedot.engines.engine import Engine
from fedot.errors import ConfigError
from fedot.federation.built import Models, Sign
from fedot.federation.cohort import most_rounds
from fedot.federation.folder import check_out, open_run
from fedot.federation.parts import OwnerParts, load_owner_parts
from fedot.federation.payloads import settled_once
from fedot.federation.server_noise import ServerNoise, client_event
from fedot.federation.summary import reported_privacy, summarize
from fedot.federation.whole_run import run_whole
from fedot.federation.work import OnRound, Steering, Work, Yardstick
from fedot.journal import Journal
from fedot.messages import Progress, no_progress
from fedot.privacy.noise import NoiseSource

__all__ = ["OpenEngine", "RunStart", "run_job"]

_NO_PROXY = "data.proxy is not set, and the server has no records of the task to measure on."
_APART = "it needs private records and the full model together, which only a simulation has."


@dataclass(frozen=True, slots=True)
class RunStart:
    """A run whose bundle is ready: what sites are told of it.

    Attributes:
        run_id: names the run in every ledger and journal.
        name: for people.
        bundle: on disk, signed where the caller signs.
        bundle_digest: SHA-256 of its manifest.
        config: with the chain and the sites settled; without files of clients.
        adapter_parameters: how many values train.
        names: all sites of the run, ascending.
        planned_rounds: by site, for how many rounds it is drawn at most; who is never drawn is
            not in it.
        last_closed: number of the last closed round; 0 at the start.
        num_received: how many good updates of a round there are so far.
    """

    run_id: str
    name: str
    bundle: Bundle
    bundle_digest: str
    config: Config
    adapter_parameters: int
    names: tuple[str, ...]
    planned_rounds: Mapping[str, int]
    last_closed: int
    num_received: Callable[[int], int]


OpenEngine = Callable[[RunStart], Engine]
"""Tells sites of a run and gives the engine that works with them; may wait until they are there."""


def run_job(
    config: Config,
    out: Path,
    open_engine: OpenEngine,
    *,
    names: Sequence[str],
    resume: bool = False,
    progress: Progress = no_progress,
    on_round: OnRound = lambda metrics: None,
    roll_back_to: Callable[[], int | None] = lambda: None,
    roll_back_done: Callable[[int], None] = lambda round: None,
    should_stop: Callable[[], str | None] = lambda: None,
    sign: Sign | None = None,
    make_noise: Callable[[], NoiseSource] = NoiseSource.from_os,
    name: str = "federation",
) -> dict[str, Any]:
    """Run a whole federation with sites that are elsewhere, and write everything about it to `out`.

    Args:
        config: the run, checked; `data.clients` and `data.policies` are not read.
        out: a directory that does not exist yet, or one to `resume`.
        open_engine: called once in a process, when the bundle is there and a round is to do.
        names: all admitted sites. A resumed run keeps those that it began with.
        resume: go on where an earlier process stopped; bundle and signature stay as they are.
        progress: is told about every long step.
        on_round: is given each round's metrics as it closes.
        roll_back_to: asked before every round for a closed round to go back to, again and again
            until `roll_back_done` is told it.
        roll_back_done: see there; `fedot.federation.roll_back` says what going back is.
        should_stop: asked for a reason to stop; the run can be resumed.
        sign: signs the bundle with the owner's key.
        make_noise: the server's own privacy noise; never anything but the default outside tests.
        name: what the report calls the run.

    Returns:
        What stands in `summary.json`.

    Raises:
        ConfigError: refused before anything was written.
        BudgetError: no noise at the server is enough.
        ProtocolError: a round could not be closed; the run can be resumed.
        RunStopped: `should_stop` gave a reason.
    """
    config = without_clients(config)
    check_out(config, out, resume)
    if not resume:
        _check_budget(with_sites(config, names))
    parts = load_owner_parts(config)
    steering = Steering(progress, on_round, roll_back_to, roll_back_done, should_stop)
    yardstick = _yardstick(parts)
    with open_run(config, out, resume) as run:
        config = settled_once(_with_sites_once(config, names, run.journal), run.journal)
        work = Work(config, parts, yardstick, run, steering, make_noise)
        outcome = run_whole(
            work,
            config.client_names,
            lambda models: open_engine(_start(work, models, name)),
            sign,
        )
        server = ServerNoise.of_run(config, run.path, make_noise)
        summary = summarize(
            config,
            outcome,
            run.journal,
            reported_privacy(config, run.journal.metrics()),
            None if server is None else server.ledger,
            _notes(config, parts),
            name,
        )
        summary["measured_on"] = "nothing" if parts.proxy is None else "proxy"
        run.write_json("summary.json", summary)
        return summary


def without_clients(config: Config) -> Config:
    """The same without clients' files and policies: sites have their own."""
    data = config.data.model_copy(update={"clients": {}, "policies": {}})
    return config.model_copy(update={"data": data})


def with_sites(config: Config, admitted: Sequence[str]) -> Config:
    """The config with its sites named, all numbers checked against how many they are.

    Raises:
        ConfigError: a site that it names is not admitted, nobody is, or a number does not fit.
    """
    wanted = config.network.sites
    strangers = sorted(set(wanted or ()) - set(admitted))
    if strangers:
        raise ConfigError(
            f"network.sites has {strangers[0]}, which is not admitted; admit it, or leave it out."
        )
    if not admitted:
        raise ConfigError("no site is admitted, so nobody could train; admit one and try again.")
    raw = config.model_dump(mode="json")
    raw["network"]["sites"] = sorted(wanted or admitted)
    return config_from_dict(raw)


def _with_sites_once(config: Config, admitted: Sequence[str], journal: Journal) -> Config:
    """A resumed run keeps the sites that it began with: cohorts and budgets hang on them."""
    kept = journal.fact("sites")
    if kept is None:
        kept = with_sites(config, admitted).network.sites
        journal.note("sites", kept)
    return with_sites(config, kept)


def _check_budget(config: Config) -> None:
    """What clients' own noise costs is each site's business; it knows its number of records."""
    if config.privacy.protects_clients:
        client_event(config)


def _start(work: Work, models: Models, name: str) -> RunStart:
    run, config = work.run, work.config
    return RunStart(
        run_id=run.run_id,
        name=name,
        bundle=models.bundle,
        bundle_digest=bundle_digest(models.bundle.folder),
        config=config,
        adapter_parameters=models.on_emulator.num_parameters,
        names=config.client_names,
        planned_rounds=most_rounds(config, config.client_names),
        last_closed=run.journal.last_closed(),
        num_received=lambda round: len(run.journal.received(round)),
    )


def _yardstick(parts: OwnerParts) -> Yardstick:
    proxy = parts.proxy
    if proxy is None:
        return Yardstick(choose=None, report=None, proxy=None)
    if len(proxy) < 2:
        raise ConfigError(
            "data.proxy has one record; over the network half of it chooses and half of it "
            "reports, so it must have two at least. Add records, or leave it out."
        )
    chooses, reports = (proxy.take(range(first, len(proxy), 2)) for first in (0, 1))
    return Yardstick(choose=None, report=reports, proxy=chooses)


def _notes(config: Config, parts: OwnerParts) -> dict[str, str]:
    """What a reader has to know of numbers that were had without any private record."""
    notes = {"full_tuned": _APART, "recovery": _APART}
    shared = config.emulator == "none"
    if parts.proxy is None:
        notes |= dict.fromkeys(("full_zero_shot", "plug_in"), _NO_PROXY)
        copied = ("emulator_zero_shot", "emulator_tuned", "plug_in_advantage", "leak_margin")
        notes |= {} if shared else dict.fromkeys(copied, _NO_PROXY)
    else:
        notes["measured"] = (
            "every loss is on the owner's proxy set, never on a site's records: every other record "
            "chose the best round, the rest report."
        )
    if not shared and parts.owner_held_out is None:
        notes["general_gap"] = "data.owner_text is not set; it is measured on the owner's text."
    if config.privacy.protects_records:
        notes["epsilon"] = (
            "epsilon is what each site reported with its last update, from its own ledger and over "
            "all runs on its data set; the server cannot check it."
        )
    return notes
