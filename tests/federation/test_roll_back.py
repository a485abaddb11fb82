"""Going back: the state and what hangs on it return, and nothing is released twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedot.console import Console
from fedot.federation.roll_back import origin, target
from fedot.federation.server_noise import ServerNoise
from fedot.federation.server_step import server_step
from fedot.journal import Journal
from fedot.privacy.ledger import Ledger
from fedot.privacy.noise import NoiseSource
from fedot.report.page import write_report

Make = Callable[..., Any]


class Requests:
    """A roll back asked for when a round was closed, as a queue of jobs keeps it."""

    def __init__(self, **by_round: int):
        self.by_round = {int(key[1:]): to for key, to in by_round.items()}
        self.wanted: int | None = None
        self.done: list[int] = []

    def on_round(self, metrics: Any) -> None:
        self.wanted = self.by_round.pop(metrics["round"], self.wanted)

    def roll_back_done(self, round: int) -> None:
        self.done.append(round)
        self.wanted = None

    def of_run(self) -> dict[str, Any]:
        return {
            "on_round": self.on_round,
            "roll_back_to": lambda: self.wanted,
            "roll_back_done": self.roll_back_done,
        }


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_round_closes_with_an_earlier_state_and_training_goes_on_from_there(
    make_federation: Make,
) -> None:
    federation = make_federation("federation.rounds=5")
    requests = Requests(_3=1)
    summary = federation.run(**requests.of_run())
    assert requests.done == [1]
    with Journal(federation.out / "journal.sqlite") as journal:
        assert journal.state(4) == journal.state(1) != journal.state(3)
        assert journal.state(5) not in [journal.state(round) for round in range(5)]
        assert [origin(journal, round) for round in range(6)] == [0, 1, 2, 3, 1, 5]
    assert [round for round, _ in federation.asked] == [1, 2, 3, 5]
    line = lines(federation.out)[4]
    assert (line["rolled_back_to"], line["cohort"], line["sent_bytes"]) == (1, [], 0)
    assert line["loss"] == lines(federation.out)[1]["loss"]
    assert summary["rounds"] == 5


@pytest.mark.parametrize("unit", ["example", "both"])
def test_ledger_keys_stay_unique_and_no_budget_is_exceeded(
    make_federation: Make, unit: str
) -> None:
    federation = make_federation(
        f"privacy.unit={unit}", "federation.rounds=4", "federation.server_optimizer=adam"
    )
    summary = federation.run(**Requests(_2=1).of_run())
    run_id = federation.starts[0].run_id
    for name in federation.names:
        assert federation.ledger_keys(name) == [f"{run_id}/{round}" for round in (1, 2, 4)]
        assert 0 < summary["privacy"]["epsilon"][name] < 8
    if unit == "both":
        entries = Ledger(federation.out / "server" / "ledger.jsonl").entries()
        assert [entry.key for entry in entries] == [f"{run_id}/{round}" for round in (1, 2, 4)]
        assert 0 < summary["privacy"]["client_level"]["epsilon"] < 8


def test_moments_and_clipping_norm_go_back_with_the_state(make_federation: Make) -> None:
    federation = make_federation(
        "privacy.unit=client",
        "privacy.client_level.adaptive=true",
        "federation.server_optimizer=adam",
        "federation.rounds=4",
    )
    federation.run(**Requests(_2=1).of_run(), make_noise=lambda: NoiseSource(bytes(32)))
    config = federation.starts[0].config
    noise = ServerNoise.of_run(config, federation.out, NoiseSource.from_os)
    assert noise is not None
    with Journal(federation.out / "journal.sqlite") as journal:
        held = {round: journal.fact(f"noised/{round}") for round in (1, 2, 3, 4)}
        assert held[3] is None
        assert held[4]["l2_clip_norm"] == held[1]["next_clip_norm"] != held[2]["next_clip_norm"]
        moments = {round: journal.fact(f"moments/{round}") for round in (1, 2, 3, 4)}
        assert moments[3] is None
        counts = [set(moments[round]["counts"].values()) for round in (1, 2, 4)]
        assert counts == [{1}, {2}, {2}], "round 4 is the second step from round 1"
        assert server_step(journal, config, 5) is not None


def test_going_back_to_the_start_is_a_start_afresh(make_federation: Make) -> None:
    federation = make_federation("federation.rounds=3", "federation.server_optimizer=adam")
    federation.run(**Requests(_1=0).of_run())
    with Journal(federation.out / "journal.sqlite") as journal:
        assert journal.state(2) == journal.state(0)
        assert set(journal.fact("moments/3")["counts"].values()) == {1}


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("moment", ["before it was closed", "after it was closed"])
def test_kill_around_a_roll_back_rolls_back_once(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    whole = make_federation("federation.rounds=4", home="whole")
    whole.run(**Requests(_2=1).of_run())
    federation, requests = make_federation("federation.rounds=4"), Requests(_2=1)
    close = Journal.close_round

    def killed(journal: Journal, round: int, *rest: Any) -> None:
        if round == 3 and moment == "before it was closed":
            raise Killed
        close(journal, round, *rest)
        if round == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "close_round", killed)
        with pytest.raises(Killed):
            federation.run(**requests.of_run())
    assert requests.done == []
    federation.run(**requests.of_run())
    assert requests.done == [1]
    went_back = [line.get("rolled_back_to") for line in lines(federation.out)]
    assert went_back == [None, None, None, 1, None]
    for name in ("adapter/adapter_model.safetensors", "adapter-best/adapter_model.safetensors"):
        assert (federation.out / name).read_bytes() == (whole.out / name).read_bytes()


@pytest.mark.parametrize("asked", [2, 3, 99])
def test_request_that_changes_nothing_costs_no_round(make_federation: Make, asked: int) -> None:
    """The last closed round's own state, one that has it already, one that is not there."""
    federation, requests = make_federation("federation.rounds=3"), Requests(_2=asked)
    federation.run(**requests.of_run())
    assert not [line for line in lines(federation.out) if "rolled_back_to" in line]
    assert requests.done == [asked]


def test_origin_follows_a_chain_of_roll_backs(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        for round, back in enumerate([None, None, 1, None, 2, 0]):
            told = {} if back is None else {"rolled_back_to": back}
            journal.close_round(round, b"state", {"round": round} | told)
        assert [origin(journal, round) for round in range(6)] == [0, 1, 1, 3, 1, 0]
        assert target(journal, 0) is None, "it is there"
        assert target(journal, 4) == 4
        assert target(journal, None) is target(journal, -1) is target(journal, 6) is None


def test_console_and_report_show_it(
    make_federation: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = make_federation("federation.rounds=3", "privacy.unit=example")
    federation.run(**Requests(_1=0).of_run())
    with Console() as console:
        for line in lines(federation.out):
            console.round_line(line)
    assert "round   2  back to round 0  proxy loss" in capsys.readouterr().out
    text = write_report(federation.out).read_text(encoding="utf-8")
    assert "2 (back to 0)" in text
    assert "Rolled back in round 2." in text
