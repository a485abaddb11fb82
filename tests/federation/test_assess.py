"""What follows from the five numbers, and the reason where nothing does."""

from __future__ import annotations

import json

import pytest
import torch

from fedot.evaluation.quality import Quality
from fedot.federation.assess import FIVE, kept_quality, summaries, verdict
from fedot.journal import Journal

LOSSES = {
    "full_zero_shot": 3.0,
    "full_tuned": 2.0,
    "emulator_zero_shot": 3.5,
    "emulator_tuned": 2.6,
    "plug_in": 2.25,
}


def quality(loss, num=10, wobble=0.01):
    tokens = torch.full((num,), 10.0, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * num, dtype=torch.float64)[:num]
    return Quality(tokens * (loss + wobble * loss * signs), tokens)


def five(**changes):
    return {name: quality(loss) for name, loss in LOSSES.items()} | changes


def test_numbers_by_hand():
    numbers, notes = verdict(five(), (quality(2.5), quality(3.0)))
    assert numbers["recovery"] == pytest.approx(0.75)  # (3 - 2.25) / (3 - 2)
    assert numbers["plug_in_advantage"] == pytest.approx(0.35)  # 2.6 - 2.25
    assert numbers["leak_margin"] == pytest.approx(-0.4)  # 2.6 - 3
    assert numbers["plug_in_gain"] == pytest.approx(0.75)
    assert numbers["general_gap"] == pytest.approx(0.5)
    assert notes == {}


def test_recovery_below_zero_is_told_as_it_is():
    numbers, _ = verdict(five(plug_in=quality(3.5)), None)
    assert numbers["recovery"] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"full_tuned": quality(3.0)}, "nothing to recover"),
        ({"full_tuned": quality(3.2)}, "nothing to recover"),
        ({"full_tuned": None}, "there is no ceiling"),
        ({"full_tuned": quality(float("nan"))}, "nothing to recover"),
        ({"plug_in": quality(float("nan"))}, "diverged"),
        ({"plug_in": None}, "was not measured"),
    ],
)
def test_recovery_that_means_nothing_is_null_with_the_reason(changes, reason):
    numbers, notes = verdict(five(**changes), None)
    assert numbers["recovery"] is None
    assert reason in notes["recovery"]


def test_worth_of_tuning_must_exceed_two_paired_errors():
    # Ten records of one token: gaps of 1 +- d have a standard error of d / 3.
    tokens = torch.ones(10, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * 5, dtype=torch.float64)
    for d, known in ((1.4, True), (1.6, False)):
        zero = Quality(tokens * 3 + d * signs, tokens)
        tuned = Quality(tokens * 2, tokens)
        numbers, _ = verdict(five(full_zero_shot=zero, full_tuned=tuned), None)
        assert (numbers["recovery"] is not None) == known


def test_single_record_has_no_verdict_and_no_infinite_error():
    single = {name: quality(loss, num=1) for name, loss in LOSSES.items()}
    numbers, notes = verdict(single, None)
    assert numbers["recovery"] is None
    assert numbers["plug_in_advantage_se"] is None
    shown, _ = summaries(single)
    assert shown["plug_in"]["loss_se"] is None
    json.dumps([numbers, notes, shown], allow_nan=False)


def test_shared_model_has_no_copy_to_compare_with():
    numbers, notes = verdict(five(emulator_zero_shot=None, emulator_tuned=None), None)
    for name in ("plug_in_advantage", "leak_margin", "general_gap"):
        assert numbers[name] is None
        assert "shares the full model" in notes[name]
    assert numbers["recovery"] == pytest.approx(0.75)


def test_without_owner_text_the_general_gap_is_null_with_the_reason():
    numbers, notes = verdict(five(), None)
    assert numbers["general_gap"] is None
    assert "data.owner_text is not set" in notes["general_gap"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_is_null_with_the_reason(loss):
    broken = five(plug_in=quality(loss))
    shown, notes = summaries(broken)
    assert shown["plug_in"] is None
    assert "diverged" in notes["plug_in"]
    assert shown["full_tuned"] == broken["full_tuned"].summary()
    json.dumps([shown, verdict(broken, None)], allow_nan=False)


def test_number_that_was_not_measured_is_null_without_a_word():
    shown, notes = summaries(dict.fromkeys(FIVE))
    assert shown == dict.fromkeys(FIVE)
    assert notes == {}


def test_what_was_measured_is_not_measured_again(tmp_path):
    measured = quality(2.5)
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert kept_quality(journal, "plug_in", lambda: measured) is measured
    with Journal(tmp_path / "journal.sqlite") as journal:
        again = kept_quality(journal, "plug_in", lambda: pytest.fail("measured twice"))
    assert torch.equal(again.nll, measured.nll)
