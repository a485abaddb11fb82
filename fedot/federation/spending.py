"""What data sets have spent, read from ledgers. No torch here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedot.config import load_config
from fedot.errors import ConfigError
from fedot.privacy.accounting import epsilon_of, rdp_epsilon_of
from fedot.privacy.ledger import Entry, Ledger
from fedot.privacy.policy import Policy, ledger_beside, load_policy, rounds_that_fit

__all__ = ["Spent", "reported_in", "spent_in"]

_MOST_ROUNDS = 10_000


@dataclass(frozen=True, slots=True)
class Spent:
    """One data set's account.

    Attributes:
        dataset_id: as its ledger names it; the server's is `federation`.
        charged: rounds whose update was stored, and may have left.
        reserved: rounds that began and have no update yet; they count as spent.
        epsilon: of both, an upper bound from PLD.
        epsilon_rdp: the same from Renyi DP, or None where it has no answer.
        delta: that both are for.
        limit: epsilon that may be spent; None if nobody set one.
        limit_from: who set it: `policy`, or the run's `target`.
        rounds_left: rounds like the last one that still fit below the limit.
    """

    dataset_id: str
    charged: int
    reserved: int
    epsilon: float
    epsilon_rdp: float | None
    delta: float
    limit: float | None
    limit_from: str
    rounds_left: int | None


def spent_in(path: Path, policy: Path | None, delta: float) -> list[Spent]:
    """Every data set's account in a ledger, or in a run's ledgers, the server's last.

    Of a network run there is the server's at most, and what its sites reported: `reported_in`.

    Args:
        path: a data owner's policy, with its ledger beside it; a ledger; or a run's directory.
        policy: the data owner's policy, for a ledger file; a run's config names its own.
        delta: for a ledger file without a policy.

    Raises:
        ConfigError: there is no ledger.
        ProtocolError: a ledger is damaged.
    """
    if (path / "config.yaml").is_file():
        found = _in_run(path)
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        ledger, owners = ledger_beside(path), load_policy(path)
        found = _in_ledger(ledger, owners, owners.delta, None) if ledger.is_file() else []
    elif path.is_file():
        found = _in_ledger(path, load_policy(policy) if policy else None, delta, None)
    else:
        raise ConfigError(
            f"{path} is neither a policy, nor a ledger, nor a run's directory; name the policy "
            "that fedot join was given, or the RUN of a simulation."
        )
    if not found and not reported_in(path):
        _refuse_without_ledgers(path)
        raise ConfigError(
            f"nothing is reserved in {path}: no round with DP has begun there. Start one, or name "
            "another run."
        )
    return found


def reported_in(path: Path) -> dict[str, float]:
    """Epsilon by site, as a finished network run's sites reported it; empty for anything else."""
    summary = path / "summary.json"
    if not summary.is_file():
        return {}
    try:
        privacy = json.loads(summary.read_text(encoding="utf-8"))["privacy"]
        told = privacy["epsilon"] if privacy.get("reported_by_sites") else None
        return {site: float(epsilon) for site, epsilon in (told or {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{summary} is not as a run wrote it; restore it.") from error


def _refuse_without_ledgers(path: Path) -> None:
    """A network run has no ledger of its clients, wherever its folder is."""
    if path.is_file():
        return
    config = load_config(path / "config.yaml")
    if config.privacy.protects_records and not config.data.clients:
        raise ConfigError(
            f"{path} is of a network run: ledgers stay at its sites, and there is no summary yet "
            "with what they reported. At a site: fedot budget show policy.ledger.jsonl "
            "--policy policy.yaml"
        )


def _in_run(path: Path) -> list[Spent]:
    config = load_config(path / "config.yaml")
    target, delta = config.privacy.target_epsilon, config.privacy.delta
    found = []
    for ledger in sorted((path / "sites").glob("*/ledger.jsonl")):
        named = config.data.policies.get(ledger.parent.name)
        policy = load_policy(Path(named)) if named else None
        found += _in_ledger(ledger, policy, delta, target)
    server, level = path / "server" / "ledger.jsonl", config.privacy.client_level
    if server.is_file():
        found += _in_ledger(server, None, level.delta, level.target_epsilon)
    return found


def _in_ledger(
    path: Path, policy: Policy | None, delta: float, target: float | None
) -> list[Spent]:
    entries = Ledger(path).entries()
    accounts = []
    for dataset_id in sorted({entry.dataset_id for entry in entries}):
        mine = [entry for entry in entries if entry.dataset_id == dataset_id]
        if policy is not None and policy.dataset_id == dataset_id:
            accounts.append(_account(mine, policy.delta, policy.max_epsilon, "policy"))
        else:
            accounts.append(_account(mine, delta, target, "target"))
    return accounts


def _account(entries: Sequence[Entry], delta: float, limit: float | None, origin: str) -> Spent:
    events = [entry.event for entry in entries]
    charged = sum(entry.digest is not None for entry in entries)
    left = None
    if limit is not None:
        left = rounds_that_fit(events, events[-1], limit, delta, _MOST_ROUNDS)
    return Spent(
        dataset_id=entries[0].dataset_id,
        charged=charged,
        reserved=len(entries) - charged,
        epsilon=epsilon_of(events, delta),
        epsilon_rdp=rdp_epsilon_of(events, delta),
        delta=delta,
        limit=limit,
        limit_from=origin if limit is not None else "",
        rounds_left=left,
    )
