from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from fedot.errors import BudgetError, ProtocolError
from fedot.privacy.accounting import SampledGaussian
from fedot.privacy.ledger import Ledger

EVENT = SampledGaussian(0.1, 1.0, 10)
DELTA = 1e-5
DIGEST = "a" * 64


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "site" / "ledger.jsonl")


def test_reservation_counts_as_spent_before_it_is_charged(ledger: Ledger) -> None:
    ledger.reserve("run/1", "data", EVENT, 8.0, DELTA)
    assert ledger.epsilon("data", DELTA) > 0
    assert ledger.entries()[0].digest is None


def test_same_round_reserves_once(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.reserve("run/1", "data", EVENT, 8.0, DELTA)
    assert len(ledger.entries()) == 1


def test_same_key_with_another_cost_is_refused(ledger: Ledger) -> None:
    ledger.reserve("run/1", "data", EVENT, 8.0, DELTA)
    with pytest.raises(ProtocolError, match="another cost"):
        ledger.reserve("run/1", "data", SampledGaussian(0.1, 0.5, 10), 8.0, DELTA)


def test_over_budget_writes_nothing(ledger: Ledger) -> None:
    ledger.reserve("run/1", "data", EVENT, 3.0, DELTA)
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetError, match="limit is 3"):
        ledger.reserve("run/2", "data", SampledGaussian(0.5, 0.8, 100), 3.0, DELTA)
    assert ledger.path.read_bytes() == before


def test_data_sets_have_budgets_of_their_own(ledger: Ledger) -> None:
    ledger.reserve("run/1", "one", EVENT, 8.0, DELTA)
    assert ledger.epsilon("other", DELTA) == 0.0


def test_charge_needs_a_reservation_and_spends_it_once(ledger: Ledger) -> None:
    with pytest.raises(ProtocolError, match="no reservation"):
        ledger.charge("run/1", DIGEST)
    ledger.reserve("run/1", "data", EVENT, 8.0, DELTA)
    ledger.charge("run/1", DIGEST)
    ledger.charge("run/1", DIGEST)
    with pytest.raises(ProtocolError, match="another update"):
        ledger.charge("run/1", "b" * 64)
    assert [entry.digest for entry in ledger.entries()] == [DIGEST]


def test_torn_last_line_was_never_acknowledged_and_goes(ledger: Ledger) -> None:
    ledger.reserve("run/1", "data", EVENT, 8.0, DELTA)
    whole = ledger.path.read_bytes()
    ledger.reserve("run/2", "data", EVENT, 8.0, DELTA)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-5])
    assert [entry.key for entry in ledger.entries()] == ["run/1"]
    ledger.reserve("run/3", "data", EVENT, 8.0, DELTA)
    assert ledger.path.read_bytes().startswith(whole)
    assert [entry.key for entry in ledger.entries()] == ["run/1", "run/3"]


def test_damage_inside_is_refused_not_repaired(ledger: Ledger) -> None:
    ledger.reserve("run/1", "data", EVENT, 8.0, DELTA)
    ledger.reserve("run/2", "data", EVENT, 8.0, DELTA)
    content = bytearray(ledger.path.read_bytes())
    content[30] ^= 1
    ledger.path.write_bytes(content)
    with pytest.raises(ProtocolError, match="damaged in line 1"):
        ledger.entries()


def spend(path: str, key: str) -> bool:
    try:
        Ledger(Path(path)).reserve(key, "data", EVENT, 3.2, DELTA)
    except BudgetError:
        return False
    return True


def test_two_processes_cannot_spend_the_same_budget(ledger: Ledger) -> None:
    # One event costs epsilon 2.85 and two cost 3.59, so exactly one of many fits into 3.2.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        won = pool.starmap(spend, [(str(ledger.path), f"run/{n}") for n in range(6)])
    assert sum(won) == 1
    assert len(ledger.entries()) == 1
