"""Runs whose data owners have policies: what is refused, what stays at home, what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedot.config import config_from_dict, load_config, with_overrides
from fedot.errors import BudgetError, ConfigError
from fedot.federation.run import simulate
from fedot.federation.spending import spent_in

QUICK = (
    "privacy.unit=example",
    "federation.rounds=2",
    "emulator.distill_steps=1",
    "evaluation.ceiling_learning_rates=[]",
)


@pytest.fixture
def policy_file(tmp_path: Path) -> Any:
    def write(name: str, **terms: Any) -> str:
        path = tmp_path / f"{name}.policy.yaml"
        known = {"dataset_id": f"{name}-notes", "max_epsilon": 10, "delta": 1e-5}
        path.write_text(yaml.safe_dump(known | {"metrics_may_leave": True} | terms))
        return str(path)

    return write


def run(base: dict[str, Any], out: Path, policies: dict[str, str], *changes: str) -> dict[str, Any]:
    raw = with_overrides(base, (*QUICK, *changes))
    raw["data"]["policies"] = policies
    return simulate(config_from_dict(raw), out)


@pytest.mark.parametrize(
    ("terms", "changes", "error", "words"),
    [
        ({"max_epsilon": 3}, (), BudgetError, ("What would fit", "privacy.target_epsilon=2.9")),
        ({}, ("privacy.unit=none",), BudgetError, ("demands DP",)),
        ({"adapters": ["blocks"]}, (), ConfigError, ("adapter is lora", "allows blocks")),
        ({"chains": ["float32"]}, (), ConfigError, ("chain is int8+deflate",)),
    ],
)
def test_policy_wins_over_the_server_before_anything_is_written(
    tiny_config: dict[str, Any],
    tmp_path: Path,
    policy_file: Any,
    terms: dict[str, Any],
    changes: tuple[str, ...],
    error: type[Exception],
    words: tuple[str, ...],
) -> None:
    policies = {"client-1": policy_file("one", **terms)}
    with pytest.raises(error) as refused:
        run(tiny_config, tmp_path / "run", policies, *changes)
    assert all(word in str(refused.value) for word in words), refused.value
    assert not (tmp_path / "run").exists()


def test_ledger_is_keyed_by_the_policys_data_set_and_shown_with_what_remains(
    tiny_config: dict[str, Any], tmp_path: Path, policy_file: Any
) -> None:
    policies = {"client-1": policy_file("one")}
    summary = run(tiny_config, tmp_path / "run", policies)
    accounts = {spent.dataset_id: spent for spent in spent_in(tmp_path / "run", None, 1e-5)}
    assert accounts.keys() == {"client-0", "one-notes", "client-2"}
    mine, other = accounts["one-notes"], accounts["client-0"]
    assert (mine.limit, mine.limit_from, mine.charged, mine.reserved) == (10, "policy", 2, 0)
    assert (other.limit, other.limit_from, other.rounds_left) == (8, "target", 0)
    assert mine.rounds_left is not None
    assert mine.rounds_left > 0
    assert mine.epsilon == summary["privacy"]["epsilon"]["client-1"]
    assert mine.epsilon_rdp == summary["privacy"]["epsilon_rdp"]["client-1"]
    assert mine.epsilon < mine.epsilon_rdp


def test_losses_on_records_stay_at_home_where_the_policy_says_so(
    tiny_config: dict[str, Any], tmp_path: Path, policy_file: Any
) -> None:
    shy = {f"client-{n}": policy_file(str(n), metrics_may_leave=False) for n in (0, 1)}
    summary = run(tiny_config, tmp_path / "shy", shy)
    assert "client-0, client-1" in summary["notes"]["measured"]
    raw = tiny_config["data"]["clients"]
    only = {
        **tiny_config,
        "data": {**tiny_config["data"], "clients": {"client-2": raw["client-2"]}},
    }
    alone = run(only, tmp_path / "alone", {})
    # Untuned, nothing but the records that are measured on matters.
    assert summary["quality"]["full_zero_shot"] == alone["quality"]["full_zero_shot"]
    everyone = shy | {"client-2": policy_file("2", metrics_may_leave=False)}
    with pytest.raises(ConfigError, match="metrics_may_leave: true"):
        run(tiny_config, tmp_path / "none", everyone)


def test_data_set_at_two_clients_of_a_run_is_refused(
    tiny_config: dict[str, Any], tmp_path: Path, policy_file: Any
) -> None:
    same = policy_file("one")
    with pytest.raises(ConfigError, match="both name data set one-notes"):
        run(tiny_config, tmp_path / "run", {"client-0": same, "client-1": same})


def test_policy_of_nobody_is_refused(tiny_config: dict[str, Any]) -> None:
    raw = tiny_config | {"data": tiny_config["data"] | {"policies": {"client-9": "p.yaml"}}}
    with pytest.raises(ConfigError, match=r"client-9, which is no client"):
        config_from_dict(raw)


def test_policy_beside_the_config_is_found(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("")
    raw = tiny_config | {"data": tiny_config["data"] | {"policies": {"client-1": "p.yaml"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    config = load_config(tmp_path / "config.yaml")
    assert config.data.policies == {"client-1": str(tmp_path / "p.yaml")}


def test_participation_is_counted_as_it_happened(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    """Who is drawn less often has less noise, and spends its target over the rounds it is in."""
    summary = run(
        tiny_config, tmp_path / "run", {}, "federation.rounds=3", "federation.cohort_size=1"
    )
    accounts = spent_in(tmp_path / "run", None, 1e-5)
    assert sum(spent.charged for spent in accounts) == 3
    drawn = {spent.dataset_id for spent in accounts}
    for name, epsilon in summary["privacy"]["epsilon"].items():
        assert (7.9 < epsilon <= 8) if name in drawn else epsilon == 0
