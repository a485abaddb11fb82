"""Halves of LoRA that take turns, or one that never has a turn."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from fedot.aggregation.means import mean
from fedot.compression.codec import spec_of
from fedot.config import AdapterConfig, Config, config_from_dict, with_overrides
from fedot.emulator.bundle import read_bundle
from fedot.errors import ConfigError
from fedot.federation.estimate import estimate
from fedot.federation.rounds import from_journal
from fedot.federation.run import simulate
from fedot.federation.turns import state_part, trained_part
from fedot.journal import Journal
from fedot.models.adapters import attach, load_adapter

FREEZE, TURNS = ("adapter.freeze=A",), ("adapter.alternate=true",)


def config_with(base: dict[str, Any], *overrides: str) -> Config:
    return config_from_dict(with_overrides(base, overrides))


def states(run: Path) -> list[dict[str, Tensor]]:
    """The adapter after every round, the start first."""
    _, last = load_adapter(run / "adapter")
    with Journal(run / "journal.sqlite") as journal:
        closed = range(journal.last_closed() + 1)
        return [from_journal(journal.state(round), spec_of(last)) for round in closed]


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Which halves differ."""
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {half for half in ("lora_A", "lora_B") for name in names if half in name}


def test_who_has_a_turn() -> None:
    assert [trained_part(AdapterConfig(), r) for r in (1, 2)] == ["all", "all"]
    assert [trained_part(AdapterConfig(freeze="A"), r) for r in (1, 2)] == ["B", "B"]
    assert [trained_part(AdapterConfig(alternate=True), r) for r in (1, 2, 3)] == ["B", "A", "B"]
    assert state_part(AdapterConfig(freeze="A")) == "B"
    assert state_part(AdapterConfig(alternate=True)) == "all"


@pytest.mark.parametrize("unit", ["none", "example"])
def test_frozen_a_stays_at_its_seeded_start(
    tiny_config: dict[str, Any], tmp_path: Path, unit: str
) -> None:
    config = config_with(tiny_config, *FREEZE, f"privacy.unit={unit}")
    summary = simulate(config, tmp_path / "run")
    start, one, two = states(tmp_path / "run")
    assert moved(start, one) == moved(one, two) == {"lora_B"}
    bundle = read_bundle(tmp_path / "run" / "bundle")
    shared = attach(bundle.load(), bundle.adapter, bundle.layer_map).state()
    assert all(torch.equal(shared[n], two[n]) for n in shared if "lora_A" in n)
    trained = sum(t.numel() for n, t in start.items() if "lora_B" in n)
    assert summary["wire"]["float32_bytes"] == 4 * trained * 3 * 2
    assert summary["wire"]["float32_bytes"] == estimate(config).float32_bytes


def test_halves_take_turns_and_only_one_travels(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    config = config_with(tiny_config, *TURNS, "federation.rounds=3")
    summary = simulate(config, tmp_path / "run")
    all_states = states(tmp_path / "run")
    halves = [moved(*pair) for pair in pairwise(all_states)]
    assert halves == [{"lora_B"}, {"lora_A"}, {"lora_B"}]
    sizes = {h: sum(t.numel() for n, t in all_states[0].items() if h in n) for h in ("_A.", "_B.")}
    assert summary["wire"]["float32_bytes"] == 4 * 3 * (2 * sizes["_B."] + sizes["_A."])
    assert summary["wire"]["float32_bytes"] == estimate(config).float32_bytes


def test_every_turn_costs_its_round(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    """Turns train other tensors on the same records: nothing is free."""
    spent = {}
    for name, overrides in (("turns", TURNS), ("both", ())):
        config = config_with(tiny_config, *overrides, "privacy.unit=example", "federation.rounds=4")
        privacy = simulate(config, tmp_path / name)["privacy"]
        spent[name] = (privacy["epsilon"], privacy["noise_multiplier"])
    assert spent["turns"] == spent["both"]
    lines = (tmp_path / "turns" / "sites" / "client-0" / "ledger.jsonl").read_text().splitlines()
    assert len(lines) == 8, "four reservations and four charges"


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("overrides", [FREEZE, TURNS])
@pytest.mark.parametrize("stop_after", [2, 4, 5])
def test_stopped_run_resumes_to_the_same_bits(
    tiny_config: dict[str, Any], tmp_path: Path, overrides: tuple[str, ...], stop_after: int
) -> None:
    config = config_with(tiny_config, *overrides)
    simulate(config, tmp_path / "whole")
    calls = 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += stage.startswith("round") and done > 0
        if calls == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        simulate(config, tmp_path / "cut", progress=stop)
    simulate(config, tmp_path / "cut", resume=True)
    whole, cut = states(tmp_path / "whole")[-1], states(tmp_path / "cut")[-1]
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_saved_adapter_loads_in_peft_with_its_frozen_half(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    config = config_with(tiny_config, *FREEZE)
    simulate(config, tmp_path / "run")
    full = AutoModelForCausalLM.from_pretrained(config.model.path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        loaded = PeftModel.from_pretrained(full, str(tmp_path / "run" / "adapter"))
    held = {
        name.replace("base_model.model.", "").replace(".default.", "."): tensor
        for name, tensor in loaded.state_dict().items()
        if "lora_" in name
    }
    last = states(tmp_path / "run")[-1]
    assert held.keys() == last.keys()
    assert all(torch.equal(held[name], last[name]) for name in last)


def test_mean_of_products_is_product_of_means_only_with_a_shared_half() -> None:
    rng = torch.Generator().manual_seed(0)

    def clients(shared: Tensor | None) -> list[dict[str, Tensor]]:
        return [
            {
                "A": torch.randn(2, 6, generator=rng) if shared is None else shared,
                "B": torch.randn(5, 2, generator=rng),
            }
            for _ in range(4)
        ]

    def gap(states: list[dict[str, Tensor]]) -> float:
        averaged = mean(states)
        products = torch.stack([s["B"].double() @ s["A"].double() for s in states]).mean(dim=0)
        return float((averaged["B"] @ averaged["A"] - products).abs().max())

    # Float64 sums of four terms of size one.
    assert gap(clients(torch.randn(2, 6, generator=rng))) < 1e-14
    assert gap(clients(None)) > 0.1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("adapter.freeze=A", "adapter.kind=blocks"), "adapter.freeze is A but adapter.kind"),
        (("adapter.alternate=true", "adapter.kind=blocks"), "adapter.alternate is true but"),
        (("adapter.freeze=A", "adapter.alternate=true"), "never has its turn"),
        (("adapter.freeze=B",), r"adapter\.freeze is 'B'"),
        # FedSA's local half: there is no way to ask for it.
        (("adapter.local=B",), r"no key adapter\.local"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny_config: dict[str, Any], overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        config_with(tiny_config, *overrides)


def test_manifest_carries_the_seed_of_a(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    simulate(config_with(tiny_config, *FREEZE), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "bundle" / "fedot-bundle.json").read_text())
    assert manifest["adapter"]["seed"] > 0
