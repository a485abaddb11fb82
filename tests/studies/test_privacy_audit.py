"""A whole audit, of a config and of a finished run; nothing of a site's is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedot.config import config_from_dict, with_overrides
from fedot.errors import ConfigError
from fedot.federation.run import simulate
from fedot.privacy.ledger import Ledger
from fedot.report.audit_file import read_audit
from fedot.report.page import write_audit, write_report
from fedot.studies import privacy_audit
from fedot.studies.privacy_audit import AuditSize, audit_config, audit_run

SMALL = AuditSize(canaries=60, text_canaries=30, references=2, repeated_games=6)


def private(config: dict[str, Any], epsilon: float = 8.0) -> dict[str, Any]:
    return {**config, "privacy": {"unit": "example", "target_epsilon": epsilon}}


def test_a_configs_audit_has_every_part_and_refutes_nothing(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    """At epsilon 8 so few canaries refute nothing; batches look odd once in 10,000 audits."""
    stages: list[str] = []
    found = audit_config(
        config_from_dict(private(tiny_config)),
        tmp_path / "audit",
        SMALL,
        lambda stage, done, total: stages.append(stage),
    )
    assert found == json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["simulation"] is True
    assert found["claim"]["epsilon"] == pytest.approx(8.0, abs=0.02)
    assert found["findings"] == []
    assert found["mechanism"]["sensitivity"] <= 1.001
    assert set(found["membership"]) == set(found["text_canaries"]) == {"on", "off"}
    assert {(r["dp"], r["view"]) for r in found["inversion"]} == {
        (dp, view) for dp in ("on", "off") for view in ("gradient", "update")
    }
    game = found["gradient_canaries"]
    assert game["lower_bound"] <= game["ceiling"]
    assert {"DP on", "DP off", "gradient canaries", "reference 2 of 2"} <= set(stages)
    page = write_audit(tmp_path / "audit").read_text()
    # So few canaries are for a test.
    assert "could not have refuted the claim" in page
    assert page.count("<svg") == 2


def test_a_planted_bug_is_told_in_the_findings_and_on_the_page(
    tiny_config: dict[str, Any],
    tmp_path: Path,
    planted: dict[str, Callable[..., None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(privacy_audit, "train_privately", planted["no noise"])
    config = config_from_dict(private(tiny_config, epsilon=1.0))
    size = AuditSize(canaries=200, text_canaries=20, references=2, repeated_games=4)
    found = audit_config(config, tmp_path / "audit", size)
    assert found["gradient_canaries"]["refuted"]
    assert any("gradient canaries show" in line for line in found["findings"])
    page = write_audit(tmp_path / "audit").read_text()
    assert "is refuted. Do not rely on it." in page


def test_a_finished_runs_adapters_are_attacked_and_its_ledgers_left_alone(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    simulate(config_from_dict(private(tiny_config)), run)
    before_page = write_report(run).read_text()
    ledgers = sorted((run / "sites").glob("*/ledger.jsonl"))
    before = {path: path.read_bytes() for path in ledgers}
    spent = {path: Ledger(path).epsilon(path.parent.name, 1e-5) for path in ledgers}
    files = {path for path in run.rglob("*") if path.is_file()}
    found = audit_run(run, SMALL)
    assert set(found["membership"]) == {"on", "off", "adapter", "adapter-best"}
    assert {path for path in run.rglob("*") if path.is_file()} - files == {run / "audit.json"}
    assert len(ledgers) == 3
    assert {path: path.read_bytes() for path in ledgers} == before
    # The claim is the ledger's own, of the client with the most records.
    client = next(path for path in ledgers if path.parent.name == found["client"])
    assert found["claim"]["epsilon"] == pytest.approx(spent[client], abs=1e-6)
    page = write_report(run).read_text()
    assert "<h2>Audit</h2>" in page
    assert "<h2>Audit</h2>" not in before_page
    assert "this run, best adapter" in page


def test_without_dp_there_is_no_claim_and_leakage_is_told_all_the_same(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    found = audit_config(config_from_dict(tiny_config), tmp_path / "audit", SMALL)
    assert found["claim"] is found["gradient_canaries"] is found["mechanism"] is None
    assert set(found["membership"]) == {"off"}
    assert "no claim to refute" in write_audit(tmp_path / "audit").read_text()


def test_a_frozen_half_is_no_part_of_the_audit(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    """The federation sends B alone, the server steps with Adam; A, which nobody gets, is silent."""
    raw = with_overrides(
        private(tiny_config),
        [
            "adapter.freeze=A",
            "federation.server_optimizer=adam",
            "federation.server_learning_rate=0.01",
            "privacy.unit=both",
        ],
    )
    found = audit_config(config_from_dict(raw), tmp_path / "audit", SMALL)
    assert found["findings"] == []
    assert found["mechanism"]["sensitivity"] <= 1.001
    # Tokens lie in the span of A's gradient, which there is none of.
    assert found["inversion"] == []


def test_a_chain_that_is_left_to_auto_is_settled_first(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    overrides = ["payload.chain=auto", "payload.bandwidth_mb_per_s=1", "privacy.unit=none"]
    config = config_from_dict(with_overrides(tiny_config, overrides))
    assert audit_config(config, tmp_path / "audit", SMALL)["claim"] is None


def test_noise_at_the_server_alone_is_nothing_to_audit(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    config = config_from_dict(with_overrides(tiny_config, ["privacy.unit=client"]))
    with pytest.raises(ConfigError, match=r"privacy\.unit is client"):
        audit_config(config, tmp_path / "audit", SMALL)
    assert not (tmp_path / "audit").exists()


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run"):
        audit_run(tmp_path)
    with pytest.raises(ConfigError, match=r"has no audit\.json"):
        write_audit(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"audited": "run"}'])
def test_a_broken_audit_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_audit(tmp_path)
    assert "\n" not in str(refused.value)
