"""What `summary.json` holds: every number of a run, and the reason where there is none."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fedot.client.chains import feeds_back, state_chain, update_chain
from fedot.compression.codec import text_of
from fedot.config import Config, PayloadConfig
from fedot.federation.assess import summaries, verdict
from fedot.federation.server_noise import DATASET_ID
from fedot.federation.whole_run import Outcome
from fedot.journal import Journal
from fedot.privacy.accounting import (
    NEIGHBOURING,
    NEIGHBOURING_CLIENTS,
    epsilon_of,
    rdp_epsilon_of,
)
from fedot.privacy.ledger import Ledger

__all__ = ["ledger_privacy", "reported_privacy", "summarize"]

_ASSUMES = "The server is trusted with the updates; anybody may know who takes part."
_ASSUMES_SECRET_COHORTS = (
    "The server is trusted with the updates, and nobody else sees who takes part in a round: no "
    "other client, and no reader of metrics.jsonl, of the journal or of the rounds in a report."
)
_PACKAGES = ("torch", "transformers", "peft", "opacus", "dp-accounting", "numpy")


def summarize(
    config: Config,
    outcome: Outcome,
    journal: Journal,
    privacy: Mapping[str, Any],
    server_ledger: Ledger | None,
    notes_of_kind: Mapping[str, str],
    name: str,
) -> dict[str, Any]:
    """Everything about a finished run, ready for JSON; only `seconds` differs between machines.

    Args:
        config: the run's, with what was settled.
        outcome: what it made.
        journal: of the run.
        privacy: `ledger_privacy` or `reported_privacy`.
        server_ledger: of noise at the server; None without.
        notes_of_kind: what a reader has to know of a simulation, or of a run over the network; they
            stand in place of the verdict's own.
        name: of the run.
    """
    bundle, (quality, broken) = outcome.bundle, summaries(outcome.five)
    numbers, notes = verdict(outcome.five, outcome.general)
    notes.update(notes_of_kind)
    notes.update(broken)
    metrics = [line for line in journal.metrics() if line["round"] > 0]
    best = journal.fact("best_round")
    ceiling = journal.fact("ceiling")
    notes.update(_privacy_notes(config, best))
    notes.update(_run_notes(config, journal))
    shared = config.emulator == "none"
    return {
        "name": name,
        "fedot_version": version("fedot-offsite-tuning"),
        "quality": quality,
        **numbers,
        "notes": notes,
        "privacy": {
            **privacy,
            "client_level": _client_level(config, server_ledger, metrics),
        },
        "wire": {**_wire(metrics), **_chains(config.payload), "bundle_bytes": bundle.num_bytes},
        "ceiling": ceiling,
        "rounds": len(metrics),
        "best_round": best,
        "clients": len(config.client_names),
        "failures": sum(len(line["failed"]) for line in metrics),
        "adapter": {
            "kind": bundle.adapter.kind,
            "parameters": journal.fact("adapter_parameters"),
            "blocks": list(bundle.adapter.blocks),
        },
        "emulator": None if shared else {"kept": list(bundle.layer_map), **journal.fact("sizes")},
        "seed": config.seed,
        "seconds": journal.fact("seconds"),
        "versions": {
            "python": platform.python_version(),
            "fedot": version("fedot-offsite-tuning"),
            **{package: version(package) for package in _PACKAGES},
        },
    }


def _run_notes(config: Config, journal: Journal) -> dict[str, str]:
    """What a reader of the numbers has to know."""
    notes = {}
    payload = journal.fact("payload")
    if payload["reason"]:
        notes["chain"] = payload["reason"]
    ceiling = journal.fact("ceiling")
    if ceiling and ceiling["epoch"] == config.evaluation.ceiling_epochs:
        notes["full_tuned"] = (
            "full fine-tuning was still getting better in its last epoch; with more of them "
            "(evaluation.ceiling_epochs) the ceiling may be higher and recovery lower."
        )
    return notes


def ledger_privacy(config: Config, ledgers: Mapping[str, Ledger]) -> dict[str, Any]:
    """What clients' ledgers say: a round whose update was refused is spent all the same."""
    private = config.privacy.protects_records
    delta = config.privacy.delta
    events = {name: ledgers[name].entries() for name in sorted(ledgers) if private}
    return {
        "unit": config.privacy.unit,
        "delta": config.privacy.delta if private else None,
        "target_epsilon": config.privacy.target_epsilon if private else None,
        "l2_clip_norm": config.privacy.l2_clip_norm if private else None,
        "neighbouring": NEIGHBOURING if private else None,
        "epsilon": {n: epsilon_of([e.event for e in held], delta) for n, held in events.items()}
        if private
        else None,
        "epsilon_rdp": {
            n: rdp_epsilon_of([e.event for e in held], delta) for n, held in events.items()
        }
        if private
        else None,
        "noise_multiplier": {
            n: held[0].event.noise_multiplier for n, held in events.items() if held
        }
        if private
        else None,
    }


def reported_privacy(config: Config, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What sites said with their last updates: the server has no client's ledger."""
    said: dict[str, float] = {}
    for line in metrics:
        said.update(line.get("epsilon", {}))
    known = {
        "epsilon": {name: said[name] for name in sorted(said)},
        "epsilon_rdp": None,
        "noise_multiplier": None,
        "reported_by_sites": True,
    }
    return ledger_privacy(config, {}) | (known if config.privacy.protects_records else {})


def _client_level(
    config: Config, ledger: Ledger | None, metrics: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """What the server's ledger says: apart from what any client spent on its records."""
    if ledger is None:
        return None
    settings, entries = config.privacy.client_level, ledger.entries()
    event = entries[0].event
    told = [line["client_level"] for line in metrics if "client_level" in line]
    return {
        "epsilon": ledger.epsilon(DATASET_ID, settings.delta),
        "target_epsilon": settings.target_epsilon,
        "delta": settings.delta,
        "neighbouring": NEIGHBOURING_CLIENTS,
        "noise_multiplier": event.noise_multiplier,
        "sampling_prob": event.sampling_prob,
        "expected_cohort_size": config.federation.cohort_size or len(config.client_names),
        "l2_clip_norm": told[-1]["l2_clip_norm"],
        "adaptive": settings.adaptive,
        "assumes": _ASSUMES_SECRET_COHORTS if settings.amplification else _ASSUMES,
    }


def _wire(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    after: Counter[str] = Counter()
    for line in metrics:
        after.update(line["bytes_after"])
    total = {
        key: sum(line[key] for line in metrics)
        for key in ("float32_bytes", "sent_bytes", "received_bytes")
    }
    return {**total, "bytes_after": dict(after)}


def _chains(payload: PayloadConfig) -> dict[str, Any]:
    """What both directions went through, with every parameter."""
    return {
        "chain": text_of(update_chain(payload)),
        "state_chain": text_of(state_chain(payload)),
        "error_feedback": feeds_back(payload),
    }


def _privacy_notes(config: Config, best: int) -> dict[str, str]:
    if config.privacy.unit == "none":
        return {"privacy": "privacy.unit is none: nothing bounds what an update tells."}
    notes = {}
    if config.data.clients:
        notes["held_out"] = (
            "losses on clients' held-out records exist in a simulation only; they are not covered "
            "by epsilon and chose nothing."
        )
    if config.data.proxy is None:
        notes["best_round"] = (
            f"the last round ({best}) is kept as the best: choosing by clients' records would be a "
            "release that nobody charged for, and data.proxy is not set."
        )
    return notes
