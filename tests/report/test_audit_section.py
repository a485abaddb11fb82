"""What a reader sees of an audit: the claim, what was found, and what cannot be known."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fedot.errors import ConfigError
from fedot.report.audit_file import audit_from
from fedot.report.audit_section import audit_section, bounds_picture, roc_picture, verdict

GAME = {
    "canaries": 1000,
    "guesses": 200,
    "correct": 186,
    "one_run_bound": 2.119,
    "one_run_ceiling": 5.789,
    "lower_bound": 3.579,
    "ceiling": 8.09,
    "power": {"noise / 2": 0.47, "no noise": 1.0},
    "repeated": {"games": 100, "lower_bound": 0.57, "ceiling": 2.56},
}
ATTACK = {
    "auc": 0.576,
    "auc_se": 0.02,
    "tpr": 0.018,
    "tpr_low": 0.007,
    "tpr_high": 0.036,
    "members": 398,
    "others": 360,
    "curve": [[0.0, 0.0], [0.5, 0.6], [1.0, 1.0]],
}
AUDIT: dict[str, Any] = {
    "audited": "config",
    "unit": "example",
    "client": "email",
    "confidence": 0.95,
    "claim": {"epsilon": 7.999, "delta": 1e-5, "noise_multiplier": 1.27},
    "gradient_canaries": GAME,
    "mechanism": {
        "sensitivity": 1.0,
        "sampling": {"size_variance_ratio": 0.9, "p_value": 0.4},
    },
    "text_canaries": {"on": GAME, "off": {**GAME, "lower_bound": None, "ceiling": None}},
    "membership": {"on": ATTACK, "off": ATTACK},
    "inversion": [
        {"records": 1, "dp": "off", "view": "update", "precision": 0.3, "chance": 0.1, "tokens": 9}
    ],
    "findings": [],
}


def changed(**parts: Any) -> Any:
    return audit_from({**copy.deepcopy(AUDIT), **parts})


def test_a_clean_audit_proves_nothing_and_says_so() -> None:
    assert "Nothing that was tried refutes the claim of epsilon 8.00" in verdict(changed())
    assert "no proof" in verdict(changed())
    assert any("never prove one" in limit for limit in audit_section(changed()).limits)


def test_a_refuted_claim_is_said_first() -> None:
    audit = changed(findings=["gradient canaries show an epsilon of at least 12."])
    assert "is refuted" in verdict(audit)
    assert audit_section(audit).findings == ["gradient canaries show an epsilon of at least 12."]


def test_lower_bounds_are_rounded_down_and_stand_beside_their_ceilings() -> None:
    rows = audit_section(changed()).games
    assert rows[0][2] == "3.57 of at most 8.09"
    assert rows[0][3] == "2.11 of at most 5.78"
    assert rows[2][2] == "no claim"


def test_pictures_show_claim_bounds_and_both_curves() -> None:
    bounds = bounds_picture(changed())
    for words in ("claimed", "gradient canaries", "repeated games", "up to the ceiling"):
        assert words in bounds
    roc = roc_picture(changed().membership)
    assert "DP on: AUC 0.576" in roc
    assert "DP off" in roc


def test_without_a_claim_there_is_no_picture_of_one() -> None:
    audit = changed(claim=None, gradient_canaries=None, mechanism=None)
    assert bounds_picture(audit) is None
    assert "no claim to refute" in verdict(audit)
    assert audit_section(audit).power == ""
    assert roc_picture({}) is None


def test_power_is_told() -> None:
    assert "noise / 2: 47 %" in audit_section(changed()).power


@pytest.mark.parametrize("key", ["unit", "client", "audited"])
def test_a_missing_part_is_named(key: str) -> None:
    raw = {name: value for name, value in AUDIT.items() if name != key}
    with pytest.raises(ConfigError, match=key):
        audit_from(raw)


def test_games_without_the_cap_say_so() -> None:
    plain, capped = AUDIT["claim"], {**AUDIT["claim"], "max_batch_size": 80, "num_records": 1000}
    told = [audit_section(changed(claim=claim)).limits for claim in (plain, capped)]
    assert [any("max_batch_size" in limit for limit in limits) for limits in told] == [False, True]


def test_a_game_without_power_is_told_in_the_verdict() -> None:
    weak = {**GAME, "canaries": 50, "power": {"noise / 2": 0.0, "no noise": 0.02}}
    told = verdict(audit_from({**AUDIT, "gradient_canaries": weak}))
    assert "could not have refuted" in told
    assert "50 canaries" in told
    assert "--canaries" in told
    found = audit_from({**AUDIT, "gradient_canaries": weak, "findings": ["too little noise."]})
    assert "is refuted" in verdict(found)
