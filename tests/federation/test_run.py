"""Whole federations, tiny: the same way and bytes as large ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedot.client.outbox import Stored
from fedot.config import Config, config_from_dict, with_overrides
from fedot.errors import ConfigError, ProtocolError
from fedot.federation.finals import best_round
from fedot.federation.run import simulate
from fedot.journal import Journal
from fedot.models.adapters import load_adapter
from fedot.report.page import write_report


def config_with(base: dict[str, Any], *overrides: str) -> Config:
    return config_from_dict(with_overrides(base, overrides))


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "seconds"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_everything_that_design_lists_is_written(tiny_config: dict[str, Any], out: Path) -> None:
    summary = simulate(config_from_dict(tiny_config), out)
    write_report(out)
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "bundle/fedot-bundle.json",
        "adapter/adapter_model.safetensors",
        "adapter-best/adapter_model.safetensors",
        "journal.sqlite",
        "report.html",
    ):
        assert (out / name).is_file(), name
    assert json.loads((out / "summary.json").read_text()) == summary
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]
    quality = summary["quality"]
    assert all(quality[name]["loss"] > 0 for name in quality)
    assert summary["wire"]["sent_bytes"] > 0
    assert summary["rounds"] == 2


def test_same_seed_without_dp_gives_the_same_summary(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    config = config_from_dict(tiny_config)
    one, two = (simulate(config, tmp_path / name) for name in ("one", "two"))
    assert without_times(one) == without_times(two)
    other = simulate(config_with(tiny_config, "seed=8"), tmp_path / "other")
    assert other["quality"] != one["quality"]


def test_dp_stays_within_the_target_for_every_client(
    tiny_config: dict[str, Any], out: Path
) -> None:
    config = config_with(tiny_config, "privacy.unit=example", "privacy.target_epsilon=4")
    summary = simulate(config, out)
    assert summary["privacy"]["unit"] == "example"
    assert summary["privacy"]["epsilon"].keys() == tiny_config["data"]["clients"].keys()
    assert all(3.5 < spent <= 4 for spent in summary["privacy"]["epsilon"].values())


def test_dp_noise_differs_between_runs_of_one_seed(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    config = config_with(tiny_config, "privacy.unit=example")
    one, two = (simulate(config, tmp_path / name) for name in ("one", "two"))
    assert one["quality"]["plug_in"] != two["quality"]["plug_in"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("adapter.kind=blocks",),
        ("adapter.blocks=top", "privacy.unit=example"),
        ("emulator=none", "adapter.blocks=all"),
        ("emulator=none", "adapter.kind=full"),
        ("emulator=none", "adapter.blocks=[1, 2]"),
        ("emulator.keep_ratio=1.0", "emulator.distill_steps=0", "data.owner_text=null"),
        ("federation.aggregation=trimmed_mean", "federation.num_trimmed=1"),
        ("federation.cohort_size=2", "federation.rounds=3"),
        ("payload.chain=bfloat16+planes+deflate", "payload.state=bfloat16"),
        ("payload.chain=nf4",),
        ("payload.chain=top_k(keep_ratio=0.1)+int8(rounding=stochastic)+zstd",),
        ("payload.chain=top_k+int8", "payload.error_feedback=false"),
        ("payload.chain=int8+gzip", "payload.error_feedback=true", "privacy.unit=example"),
        ("payload.chain=auto", "payload.bandwidth_mb_per_s=1", "payload.error_feedback=true"),
        ("model.dtype=bfloat16",),
        ("privacy.unit=example", "adapter.kind=blocks"),
        ("privacy.unit=example", "emulator=none", "adapter.kind=full"),
        ("evaluation.ceiling_learning_rates=[]", "data.proxy=null"),
    ],
)
def test_variants_run_to_the_end(
    tiny_config: dict[str, Any], out: Path, overrides: tuple[str, ...]
) -> None:
    summary = simulate(config_with(tiny_config, *overrides), out)
    assert summary["quality"]["plug_in"]["loss"] > 0
    assert write_report(out).stat().st_size > 10_000
    missing = [name for name in ("recovery", "plug_in_advantage") if summary[name] is None]
    assert all(name in summary["notes"] for name in missing)


def test_without_emulator_tuned_copy_is_not_reported(
    tiny_config: dict[str, Any], out: Path
) -> None:
    summary = simulate(config_with(tiny_config, "emulator=none"), out)
    assert summary["quality"]["emulator_tuned"] is None
    assert summary["emulator"] is None
    assert "shares the full model" in summary["notes"]["plug_in_advantage"]


def test_bundle_loads_with_plain_transformers(tiny_config: dict[str, Any], out: Path) -> None:
    simulate(config_from_dict(tiny_config), out)
    model = AutoModelForCausalLM.from_pretrained(out / "bundle")
    assert model.config.num_hidden_layers == 3  # two ends and half of a middle of two


class Stopped(BaseException):
    """Stands for Ctrl-C or a kill."""


@pytest.mark.parametrize("stop_after", [1, 2, 4, 5])
def test_stopped_run_resumes_to_the_same_bits(
    tiny_config: dict[str, Any], tmp_path: Path, stop_after: int
) -> None:
    config = config_from_dict(tiny_config)
    whole = simulate(config, tmp_path / "whole")
    calls = 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += stage.startswith("round") and done > 0
        if calls == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        simulate(config, tmp_path / "cut", progress=stop)
    resumed = simulate(config, tmp_path / "cut", resume=True)
    assert without_times(resumed) == without_times(whole)
    one, two = (load_adapter(tmp_path / n / "adapter")[1] for n in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_resumed_dp_run_charges_every_round_once(tiny_config: dict[str, Any], out: Path) -> None:
    config = config_with(tiny_config, "privacy.unit=example", "federation.rounds=3")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "round 2" and done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        simulate(config, out, progress=stop)
    summary = simulate(config, out, resume=True)
    for name, spent in summary["privacy"]["epsilon"].items():
        lines = (out / "sites" / name / "ledger.jsonl").read_text().splitlines()
        assert len(lines) == 6, "three reservations and three charges"
        assert spent <= config.privacy.target_epsilon


def test_finished_run_resumes_to_itself(tiny_config: dict[str, Any], out: Path) -> None:
    config = config_from_dict(tiny_config)
    first = simulate(config, out)
    assert without_times(simulate(config, out, resume=True)) == without_times(first)


def test_resume_with_another_config_is_refused(tiny_config: dict[str, Any], out: Path) -> None:
    simulate(config_from_dict(tiny_config), out)
    with pytest.raises(ConfigError, match=r"training\.learning_rate"):
        simulate(config_with(tiny_config, "training.learning_rate=0.5"), out, resume=True)


def test_best_round_is_never_chosen_by_private_records(
    tiny_config: dict[str, Any], out: Path
) -> None:
    config = config_with(tiny_config, "privacy.unit=example", "data.proxy=null")
    rounds = [
        {"round": 0, "loss": {"plug_in": 0.0, "proxy": 0.0}},
        {"round": 1, "loss": {"plug_in": 1.0, "proxy": 3.0}},
        {"round": 2, "loss": {"plug_in": 2.0, "proxy": 1.0}},
        {"round": 3, "loss": {"plug_in": 3.0, "proxy": 2.0}},
    ]
    assert best_round(config, rounds) == 3
    with_proxy = config_with(tiny_config, "privacy.unit=example")
    assert best_round(with_proxy, rounds) == 2
    assert best_round(config_from_dict(tiny_config), rounds) == 1
    over_the_network = config_with(tiny_config, "data.clients={}")
    assert best_round(over_the_network, rounds) == 2
    assert best_round(config_with(tiny_config, "data.clients={}", "data.proxy=null"), rounds) == 3


def test_a_broken_update_is_refused_and_the_round_goes_on(
    tiny_config: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedot.client import round as client_round

    store = client_round._store

    def broken(site: Any, *args: Any) -> Stored:
        stored = store(site, *args)
        cut = stored.payload[:-7] if site.info.name == "client-0" else stored.payload
        return replace(stored, payload=cut)

    monkeypatch.setattr(client_round, "_store", broken)
    summary = simulate(config_from_dict(tiny_config), out)
    assert summary["failures"] == 2
    with Journal(out / "journal.sqlite") as journal:
        assert [u.client for u in journal.received(1)] == ["client-1", "client-2"]


def test_training_that_diverges_says_so(tiny_config: dict[str, Any], out: Path) -> None:
    config = config_with(tiny_config, "training.learning_rate=1e30")
    with pytest.raises(ProtocolError, match=r"Lower training\.learning_rate"):
        simulate(config, out)


def test_round_without_updates_ends_the_run_with_the_reason(
    tiny_config: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedot.engines import local
    from fedot.errors import BudgetError

    def refuse(*_: Any) -> None:
        raise BudgetError("nothing left")

    monkeypatch.setattr(local, "run_round", refuse)
    with pytest.raises(ProtocolError, match="nothing left"):
        simulate(config_from_dict(tiny_config), out)


def test_simulation_without_clients_is_refused_before_anything_is_written(
    tiny_config: dict[str, Any], out: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data\.clients is empty"):
        simulate(config_with(tiny_config, "data.clients={}"), out)
    assert not out.exists()


def test_data_that_changed_between_stop_and_resume_is_refused(
    tiny_config: dict[str, Any], out: Path
) -> None:
    config = config_from_dict(tiny_config)
    simulate(config, out)
    victim = Path(tiny_config["data"]["clients"]["client-1"])
    victim.write_text(victim.read_text() + '{"text": "one record more"}\n')
    with pytest.raises(ConfigError, match=r"client-1\.jsonl has changed"):
        simulate(config, out, resume=True)


def test_lines_lost_by_a_kill_come_back(tiny_config: dict[str, Any], out: Path) -> None:
    config = config_from_dict(tiny_config)
    simulate(config, out)
    whole = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").unlink()
    simulate(config, out, resume=True)
    assert (out / "metrics.jsonl").read_text() == whole


def test_dp_training_that_diverged_is_charged_once_and_never_repeated(
    tiny_config: dict[str, Any], out: Path
) -> None:
    config = config_with(tiny_config, "privacy.unit=example", "training.learning_rate=1e30")
    summary = simulate(config, out)
    assert summary["failures"] == 0
    for name, spent in summary["privacy"]["epsilon"].items():
        lines = (out / "sites" / name / "ledger.jsonl").read_text().splitlines()
        assert len(lines) == 4, "two reservations and two charges"
        assert 7 < spent <= 8
