"""What must hold of a federation whose processes were killed, looked at from outside."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from kill_world import ROUNDS, SITES

from fedot.client.chains import update_chain
from fedot.compression.codec import decode, spec_of
from fedot.emulator.bundle import read_bundle
from fedot.federation.jobs import JobQueue
from fedot.federation.rounds import from_journal
from fedot.journal import Journal
from fedot.models.adapters import attach
from fedot.privacy.ledger import Ledger


def run_of(home: Path) -> Path:
    (run,) = (home / "server" / "jobs").glob("*/run")
    return run


def traces(home: Path) -> dict[str, Any]:
    """Everything that must be as if nobody had been killed, without DP."""
    run = run_of(home)
    found: dict[str, Any] = {}
    for folder in ("adapter", "adapter-best"):
        found[folder] = (run / folder / "adapter_model.safetensors").read_bytes().hex()
    with Journal(run / "journal.sqlite") as journal:
        rounds = range(journal.last_closed() + 1)
        found["states"] = [journal.state(round).hex() for round in rounds]
        found["updates"] = [[(u.client, u.digest) for u in journal.received(n)] for n in rounds]
        found["lines"] = [{**line, "seconds": 0} for line in journal.metrics()]
    return found


def broken_in(home: Path, config: Any, wanted: dict[str, Any]) -> list[str]:
    """Promises that do not hold in a federation that has ended.

    Args:
        wanted: `traces` of an undisturbed one; without it, or with DP, nothing is compared.
    """
    with JobQueue(home / "server" / "jobs.sqlite") as queue:
        (job,) = queue.list()
    if job.state != "done":
        return [f"the job is {job.state}: {job.reason}"]
    found = broken_order(home)
    if config.privacy.protects_records:
        found += broken_ledgers(home)
    elif wanted:
        got = traces(home)
        found += [
            f"{key} differ from an undisturbed run's" for key in got if got[key] != wanted[key]
        ]
    return found + broken_aggregates(home, config)


def broken_order(home: Path) -> list[str]:
    """What the processes told while they ran: see `kill_world.Watched`."""
    found: list[str] = []
    digests: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    acknowledged: set[tuple[str, int]] = set()
    accepted: set[tuple[str, int]] = set()
    for line in (home / "trace.jsonl").read_text().splitlines():
        told = json.loads(line)
        what, key = told["what"], (told.get("site", ""), told["round"])
        if what in ("sends", "reached"):
            digests[key].add(told["digest"])
        if what == "sends" and key in acknowledged:
            found.append("an update was sent again that had been acknowledged")
        if what == "trains" and told["stored"]:
            found.append("a round trained although its update was stored")
        if what == "posted" and any((site, told["round"]) in accepted for site in told["sites"]):
            found.append("an update was asked for again that the journal had")
        acknowledged |= {key} if what == "acknowledged" else set()
        accepted |= {key} if what == "accepted" else set()
    found += ["a round was sent with two updates" for sent in digests.values() if len(sent) > 1]
    return found + ["an update reached the server and was not charged" for _ in _uncharged(home)]


def witnessed(home: Path) -> Counter[str]:
    """What restarts had to do with what was there already."""
    told = [json.loads(line) for line in (home / "trace.jsonl").read_text().splitlines()]
    sent = Counter((each["site"], each["round"]) for each in told if each["what"] == "sends")
    return Counter(
        stored_bytes_sent_again=sum(sent.values()) - len(sent),
        rounds_gone_on_with=sum(
            each["what"] == "posted" and len(each["sites"]) < len(SITES) for each in told
        ),
    )


def _uncharged(home: Path) -> list[dict[str, Any]]:
    if not any(home.glob("*/policy.ledger.jsonl")):
        return []
    lines = [json.loads(line) for line in (home / "trace.jsonl").read_text().splitlines()]
    return [told for told in lines if told["what"] == "reached" and not told["charged"]]


def broken_ledgers(home: Path) -> list[str]:
    """Every round reserved once, and charged once with what the server counted."""
    found = []
    with Journal(run_of(home) / "journal.sqlite") as journal:
        run_id = journal.fact("run_id")
        counted = {
            (update.client, f"{run_id}/{round}"): update.digest
            for round in range(1, ROUNDS + 1)
            for update in journal.received(round)
        }
    for site in SITES:
        path = home / site / "policy.ledger.jsonl"
        entries = Ledger(path).entries()
        charged = {(site, entry.key): entry.digest for entry in entries}
        if charged != {key: digest for key, digest in counted.items() if key[0] == site}:
            found.append("a ledger has not what the server counted")
        if len(path.read_text().splitlines()) != 2 * ROUNDS:
            found.append("a ledger has not one reservation and one charge a round")
    return found


def broken_aggregates(home: Path, config: Any) -> list[str]:
    """Every round's state is what the payloads give that the journal held, each counted once."""
    run, found = run_of(home), []
    bundle = read_bundle(run / "bundle")
    adapter = attach(bundle.load(config.model.dtype), bundle.adapter, bundle.layer_map)
    expected = spec_of(adapter.state())
    with Journal(run / "journal.sqlite") as journal:
        for line in journal.metrics()[1:]:
            round = line["round"]
            received = journal.received(round)
            if [update.client for update in received] != list(SITES) or line["failed"]:
                found.append("a round closed without everybody's update")
                continue
            payloads = [(home / "evidence" / update.digest).read_bytes() for update in received]
            updates = [
                decode(each, expected, allowed=[update_chain(config.payload)]) for each in payloads
            ]
            before, after = (from_journal(journal.state(n), expected) for n in (round - 1, round))
            rate = config.federation.server_learning_rate
            for name in expected:
                mean = torch.stack([update[name].double() for update in updates]).mean(dim=0)
                if not torch.equal((before[name].double() + rate * mean).float(), after[name]):
                    found.append("a state is not what the payloads give")
                    break
            if line["sent_bytes"] != sum(map(len, payloads)):
                found.append("an update was counted more than once")
    return list(Counter(found))
