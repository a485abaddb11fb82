"""Sentences say what the numbers say, and nothing more."""

from __future__ import annotations

import pytest

from fedot.report.run_files import summary_from
from fedot.report.wording import absent, alerts, headline, key_numbers, meaning_of, other_notes


def meanings(summary):
    return {number.name: number.meaning for number in key_numbers(summary_from(summary))}


def told(summary):
    return " ".join(alerts(summary_from(summary)))


def with_loss(summary, **losses):
    quality = dict(summary["quality"])
    for name, loss in losses.items():
        quality[name] = None if loss is None else quality[name] | {"loss": loss}
    return summary | {"quality": quality}


def test_the_headline_tells_who_what_and_at_which_cost(make_summary):
    assert headline(summary_from(make_summary())) == (
        "Four data owners tuned this model without showing their records; the plugged-in model "
        "got back 82 % of what full fine-tuning on pooled records would have gained; each owner "
        "spent at most epsilon 7.99."
    )


def test_without_dp_nothing_is_said_to_be_private(make_summary):
    summary = make_summary(unit="none")
    sentence = headline(summary_from(summary))
    assert "may reveal" in sentence
    assert "without showing" not in sentence
    assert "epsilon" not in sentence
    assert "Differential privacy was off" in told(summary)


def test_a_quiet_run_has_no_alerts(make_summary):
    assert alerts(summary_from(make_summary())) == []


@pytest.mark.parametrize("advantage", [0.0, -0.02])
def test_an_emulator_as_good_as_plug_in_is_told_plainly(make_summary, advantage):
    summary = make_summary(plug_in_advantage=advantage)
    assert "given away" in meanings(summary)["plug_in_advantage"]
    assert "needs the closed model no more" in told(summary)


def test_a_difference_within_two_standard_errors_is_no_difference(make_summary):
    summary = make_summary(plug_in_advantage=0.02, leak_margin=-0.02)
    assert "Within two standard errors" in meanings(summary)["plug_in_advantage"]
    assert "About zero" in meanings(summary)["leak_margin"]
    assert "cannot be told" in told(summary | {"plug_in_gain": 0.014})


def test_a_paired_difference_is_told_though_the_losses_overlap(make_summary):
    """Losses of the same records move together: their own errors say nothing of the difference."""
    summary = with_loss(make_summary(plug_in_gain=0.014, plug_in_gain_se=0.002), plug_in=2.9)
    assert "cannot be told" not in told(summary)


def test_the_sign_of_the_leak_margin_decides_its_meaning(make_summary):
    assert meanings(make_summary(leak_margin=-0.1))["leak_margin"].startswith("Below zero")
    assert meanings(make_summary(leak_margin=0.1))["leak_margin"].startswith("Above zero")


def test_a_worse_model_is_called_worse(make_summary):
    summary = with_loss(make_summary(recovery=None, plug_in_gain=-0.186), plug_in=3.1)
    assert "rose from 2.914 to 3.100" in headline(summary_from(summary))
    assert "worse than the untuned" in told(summary)
    assert "did not help" in meanings(summary | {"recovery": -0.7})["recovery"]


def test_recovery_above_one_is_called_more(make_summary):
    summary = summary_from(make_summary(recovery=1.1))
    assert "gained 110 % of what full fine-tuning did" in headline(summary)


def test_a_missing_number_is_followed_by_the_runs_own_reason(make_summary):
    notes = {"recovery": "fine-tuning gained too little.", "full_tuned": "left out by config."}
    summary = with_loss(make_summary(recovery=None, notes=notes), full_tuned=None)
    assert meanings(summary)["recovery"] == "Fine-tuning gained too little."
    checked = summary_from(summary)
    assert meaning_of(checked, "full_tuned").endswith("(not known: left out by config)")
    assert other_notes(checked) == []


def test_a_missing_number_without_a_reason_says_so(make_summary):
    assert meanings(make_summary(general_gap=None))["general_gap"] == "The run recorded no reason."


def test_a_note_that_stands_beside_no_number_is_kept(make_summary):
    summary = make_summary(notes={"privacy": "chosen by proxy text", "leak_margin": "caveat"})
    assert other_notes(summary_from(summary)) == ["chosen by proxy text", "leak margin: caveat"]


def test_overspending_missing_epsilon_and_failures_are_told(make_summary):
    summary = make_summary(failures=2)
    summary["privacy"]["epsilon"] = {"email": 8.2, "xml": 7.0}
    assert "One client spent more than the target epsilon" in told(summary)
    assert "Two updates" in told(summary)
    assert "no owner with a recorded budget" in headline(summary_from(summary))
    summary["privacy"]["epsilon"] = {}
    assert "nothing is claimed" in told(summary)
    assert "not recorded" in headline(summary_from(summary))


def test_without_an_emulator_nothing_is_called_closed(make_summary):
    summary = make_summary(emulator=None, plug_in_advantage=0.0)
    assert "full model itself" in told(summary)
    assert "given away" not in meanings(summary)["plug_in_advantage"]
    assert "closed" not in meaning_of(summary_from(summary), "full_zero_shot")


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ("data.proxy is not set.", "data.proxy is not set."),
        ("emulator: none shares the model.", "emulator: none shares the model."),
        ("late.", "Late."),
    ],
)
def test_a_key_of_the_config_is_written_as_the_config_has_it(make_summary, note, told):
    assert absent(summary_from(make_summary(notes={"plug_in": note})), "plug_in") == told


def test_the_first_reason_that_is_there_counts(make_summary):
    summary = summary_from(make_summary(notes={"plug_in": "it was not there."}))
    assert absent(summary, "loss", "plug_in") == "It was not there."
    assert absent(summary, "loss") == "The run recorded no reason."
