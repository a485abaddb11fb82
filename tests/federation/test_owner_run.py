"""A federation whose server has no records: the same rounds, quality on what is the owner's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fedot.cards import RunCard
from fedot.console import Console
from fedot.emulator.bundle import read_bundle
from fedot.errors import ConfigError, ProtocolError, RunStopped
from fedot.federation.run import simulate
from fedot.journal import Journal
from fedot.privacy.noise import NoiseSource
from fedot.report.page import write_report

Make = Callable[..., Any]


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def loses(client: str) -> Callable[[Any], Any]:
    return lambda answer: None if answer.client == client else answer


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("federation.cohort_size=2", "federation.server_optimizer=adam", "federation.rounds=3"),
        ("privacy.unit=example",),
        ("emulator=none", "adapter.blocks=all"),
    ],
)
def test_sites_and_simulation_make_the_same_adapter_bits(
    make_federation: Make, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    federation = make_federation(*overrides)
    federation.run()
    simulate(federation.config, tmp_path / "sim", make_noise=lambda: NoiseSource(bytes(32)))
    assert adapter_bytes(federation.out) == adapter_bytes(tmp_path / "sim")


def test_no_file_of_a_client_is_read_or_named_at_the_server(make_federation: Make) -> None:
    federation = make_federation("privacy.unit=example")
    for name in federation.names:
        Path(federation.config.data.clients[name]).unlink()
    summary = federation.run()
    assert summary["clients"] == 3
    assert not (federation.out / "sites").exists()
    assert "client-0.jsonl" not in (federation.out / "config.yaml").read_text()
    known = {"round", "cohort", "failed", "loss", "sent_bytes", "received_bytes", "float32_bytes"}
    known |= {"bytes_after", "epsilon", "update_norm", "learning_rate", "seconds"}
    assert all(line.keys() <= known for line in lines(federation.out))
    assert all(line["loss"]["plug_in"] is None for line in lines(federation.out))


def test_quality_is_on_the_proxy_set_and_the_rest_has_its_reason(make_federation: Make) -> None:
    federation = make_federation("data.max_tokens=32")
    summary = federation.run()
    quality, notes = summary["quality"], summary["notes"]
    for name in ("full_zero_shot", "emulator_zero_shot", "emulator_tuned", "plug_in"):
        assert quality[name]["records"] == 6, "half of the twelve; the other half chose"
    for name in ("full_tuned", "recovery"):
        assert "private records and the full model together" in notes[name]
    assert quality["full_tuned"] is summary["recovery"] is None
    for name in ("plug_in_advantage", "leak_margin", "general_gap"):
        assert isinstance(summary[name], float)
        assert name not in notes
    assert "the owner's proxy set" in notes["measured"]
    best = min(lines(federation.out)[1:], key=lambda line: line["loss"]["proxy"])
    assert summary["best_round"] == best["round"]
    text = write_report(federation.out).read_text(encoding="utf-8")
    assert "Loss on the model owner&#39;s proxy set" in text
    assert "held-out" not in text.split("Resolved config")[0]


@pytest.mark.parametrize("emulator", ["kept", "none"])
def test_without_proxy_every_number_is_null_with_the_reason(
    make_federation: Make, emulator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("emulator=none",) if emulator == "none" else ()
    federation = make_federation("data.proxy=null", *shared)
    summary = federation.run()
    assert set(summary["quality"].values()) == {None}
    assert "data.proxy is not set" in summary["notes"]["plug_in"]
    for name in ("recovery", "plug_in_advantage", "leak_margin"):
        assert summary[name] is None
        assert summary["notes"][name]
    assert summary["best_round"] == 2
    assert ("general_gap" in summary["notes"]) == (summary["general_gap"] is None)
    with Console() as console:
        console.summary_table(summary)
    assert "data.proxy is not set" in " ".join(capsys.readouterr().out.split())
    assert write_report(federation.out).stat().st_size > 10_000


def test_epsilon_is_what_sites_reported_and_says_so(make_federation: Make) -> None:
    federation = make_federation(
        "privacy.unit=example",
        change=lambda answer: replace(answer, epsilon=30.0 + answer.round),
    )
    summary = federation.run()
    assert summary["privacy"]["epsilon"] == dict.fromkeys(federation.names, 32.0)
    assert summary["privacy"]["reported_by_sites"] is True
    assert "each site reported" in summary["notes"]["epsilon"]
    text = write_report(federation.out).read_text(encoding="utf-8")
    assert "more than the target" not in text, "it is over all runs of a site"


def test_engine_is_told_all_that_sites_must_know(make_federation: Make) -> None:
    federation = make_federation("federation.cohort_size=2", "payload.chain=auto",
                                 "payload.bandwidth_mb_per_s=1")  # fmt: skip
    federation.run(name="second opinion")
    (start,) = federation.starts
    assert start.config.payload.chain != "auto"
    assert start.config.network.sites == list(start.names) == federation.names
    assert sum(start.planned_rounds.values()) == 4
    manifest = (federation.out / "bundle" / "fedot-bundle.json").read_bytes()
    assert start.bundle_digest == sha256(manifest).hexdigest()
    config = start.config
    card = RunCard(
        run_id=start.run_id,
        name=start.name,
        bundle_digest=start.bundle_digest,
        bundle_bytes=start.bundle.num_bytes,
        adapter=start.bundle.adapter.kind,
        adapter_parameters=start.adapter_parameters,
        dtype=config.model.dtype,
        max_tokens=config.data.max_tokens,
        rounds=config.federation.rounds,
        planned_rounds=start.planned_rounds["client-0"],
        training=config.training,
        privacy=config.privacy,
        payload=config.payload,
        seed=config.seed,
    )
    assert RunCard.read(card.model_dump_json()) == card


def test_bundle_is_signed_once_and_a_resumed_run_keeps_it(make_federation: Make) -> None:
    federation = make_federation()
    with pytest.raises(RunStopped):
        federation.run(sign=lambda message: sha256(message).digest(), should_stop=lambda: "enough")
    bundle = federation.out / "bundle"
    before = (bundle / "fedot-bundle.json").read_bytes()
    assert read_bundle(bundle).signature is not None
    federation.run(sign=lambda message: b"another")
    assert (bundle / "fedot-bundle.json").read_bytes() == before


def test_quorum_closes_a_round_and_names_who_is_missing(make_federation: Make) -> None:
    federation = make_federation(
        "federation.quorum=2", "federation.deadline_s=9", change=loses("client-1")
    )
    summary = federation.run()
    assert summary["failures"] == 2
    assert "did not answer" in lines(federation.out)[1]["failed"]["client-1"]


def test_round_below_quorum_stops_the_run_which_can_be_resumed(make_federation: Make) -> None:
    federation = make_federation("federation.quorum=3", change=loses("client-1"))
    with pytest.raises(ProtocolError, match=r"round 1 got 2 updates; it needs 3"):
        federation.run()
    federation.change = lambda answer: answer
    federation.run()
    assert federation.asked[1] == (1, ("client-1",)), "what is in is not asked for again"
    whole = make_federation("federation.quorum=3", home="whole")
    whole.run()
    assert adapter_bytes(whole.out) == adapter_bytes(federation.out)


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_who_answered_is_settled_before_a_kill_can_change_it(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third site would answer after the restart: the round is already made of two."""
    federation = make_federation("federation.quorum=2", change=loses("client-1"))
    whole = make_federation("federation.quorum=2", change=loses("client-1"), home="whole")
    whole.run()
    with monkeypatch.context() as patch:
        close = Journal.close_round

        def killed(journal: Journal, round: int, *rest: Any) -> None:
            if round == 2:
                raise Killed
            close(journal, round, *rest)

        patch.setattr(Journal, "close_round", killed)
        with pytest.raises(Killed):
            federation.run()
    federation.change = lambda answer: answer
    federation.run()
    assert adapter_bytes(whole.out) == adapter_bytes(federation.out)
    assert [round for round, _ in federation.asked] == [1, 2]


def test_stop_between_collect_and_the_end_of_a_round_settles_nothing(
    make_federation: Make,
) -> None:
    """An engine that is told to stop ends early: those left out must be asked again."""
    federation = make_federation(change=loses("client-1"))
    with pytest.raises(RunStopped, match=r"after round 0: the owner aborted the job\."):
        federation.run(
            should_stop=lambda: "the owner aborted the job" if federation.asked else None
        )
    federation.change = lambda answer: answer
    summary = federation.run()
    assert summary["failures"] == 0
    assert federation.asked[1] == (1, ("client-1",))


def test_resumed_run_keeps_the_sites_it_began_with(make_federation: Make) -> None:
    federation = make_federation()
    with pytest.raises(RunStopped):
        federation.run(should_stop=lambda: "enough")
    federation.run(names=[*federation.names, "latecomer"])
    assert federation.starts[-1].names == tuple(federation.names)


@pytest.mark.parametrize(
    ("overrides", "names", "words"),
    [
        (("network.sites=[client-0, client-7]",), None, "client-7, which is not admitted"),
        ((), [], "no site is admitted"),
        (("federation.quorum=3",), ["client-0", "client-1"], "federation.quorum is 3"),
        (("network.wait_for=3",), ["client-0", "client-1"], "network.wait_for is 3"),
    ],
)
def test_run_that_its_sites_do_not_fit_is_refused_before_anything_is_written(
    make_federation: Make, overrides: tuple[str, ...], names: list[str] | None, words: str
) -> None:
    federation = make_federation(*overrides)
    with pytest.raises(ConfigError, match=words):
        federation.run(names=federation.names if names is None else names)
    assert not federation.out.exists()


def test_finished_run_asks_no_site_again(make_federation: Make) -> None:
    federation = make_federation()
    first = federation.run()
    again = federation.run()
    assert len(federation.starts) == 1
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
