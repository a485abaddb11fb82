from __future__ import annotations

import fcntl
import multiprocessing
from pathlib import Path
from typing import Any

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


def test_reading_makes_no_file(ledger: Ledger) -> None:
    assert ledger.entries() == []
    assert not ledger.path.exists()


@pytest.mark.parametrize("number", [1, 2])
def test_line_that_cannot_follow_is_damage(ledger: Ledger, number: int) -> None:
    """A charge that nobody reserved; a round that is reserved twice."""
    ledger.reserve("run/1", "data", EVENT, 8.0, DELTA)
    ledger.charge("run/1", DIGEST)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(lines[1] if number == 1 else lines[0] * 2)
    with pytest.raises(ProtocolError, match=f"damaged in line {number}"):
        ledger.entries()


def test_ledger_of_a_capped_event_reads_back(ledger: Ledger) -> None:
    event = SampledGaussian(0.1, 1.0, 10, max_batch_size=40, num_records=300)
    ledger.reserve("run/1", "data", event, 8.0, DELTA)
    assert ledger.entries()[0].event == event


NUM_RACES = 12


def race(folder: Path, number: int, start: Any, won: Any, plant: bool) -> None:
    """One of two processes that want the same budget again and again."""
    if plant:
        fcntl.flock = lambda *_: None
    for turn in range(NUM_RACES):
        # Another event each time, so that each has to compute its cost while it holds the lock.
        event = SampledGaussian(0.1, 1.0 + turn / 1000, 10)
        start.wait()
        try:
            Ledger(folder / str(turn)).reserve(f"run/{number}", "data", event, 3.2, DELTA)
        except BudgetError:
            continue
        with won.get_lock():
            won[turn] += 1


def winners(folder: Path, plant: bool = False) -> list[int]:
    context = multiprocessing.get_context("spawn")
    start, won = context.Barrier(2), context.Array("i", NUM_RACES)
    racers = [
        context.Process(target=race, args=(folder, number, start, won, plant)) for number in (1, 2)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    return list(won)


def test_two_processes_cannot_spend_the_same_budget(tmp_path: Path) -> None:
    # One event costs epsilon 2.85 and two cost 3.59, so exactly one fits into 3.2.
    assert winners(tmp_path) == [1] * NUM_RACES
    for turn in range(NUM_RACES):
        assert len(Ledger(tmp_path / str(turn)).entries()) == 1


@pytest.mark.slow
def test_without_the_lock_the_race_is_lost(tmp_path: Path) -> None:
    """So the test above can fail: of twelve races, some are lost without the lock."""
    assert max(winners(tmp_path, plant=True)) == 2
