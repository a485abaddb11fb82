"""The attack's statistics by hand, and the attack on a model that knows its members by heart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedot.client.training import TrainingSettings, train
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.studies.membership import attack, membership_scores, random_records, record_losses


def test_auc_and_low_false_alarms_by_hand() -> None:
    found = attack(np.array([3.0, 2.0, 0.0]), np.array([1.0, 2.0]))
    assert found.auc == pytest.approx((2 + 1.5 + 0) / 6)
    assert found.tpr == pytest.approx(1 / 3), "only 3.0 is above every other"
    assert found.tpr_low < found.tpr < found.tpr_high
    assert found.curve[0] == (0.0, 0.0)
    assert found.curve[-1] == (1.0, 1.0)


def test_one_false_alarm_in_a_hundred_is_allowed() -> None:
    others = np.arange(100.0)
    assert attack(np.array([98.5, 97.5]), others).tpr == pytest.approx(0.5)


def test_scores_are_likelihood_ratios_to_the_references_mean() -> None:
    scores = membership_scores(np.array([1.0, 2.0]), np.array([[1.0, 3.0], [1.0, 3.0]]))
    np.testing.assert_allclose(scores, [0.0, 1.0])
    one_likely = membership_scores(np.array([0.0]), np.array([[0.0], [np.log(3)]]))
    np.testing.assert_allclose(one_likely, [-np.log((1 + 1 / 3) / 2)])


def test_an_attack_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="0 members"):
        attack(np.array([]), np.array([1.0]))


def test_members_are_told_after_overfitting_and_not_before(
    adapter: Adapter, records: Sequences
) -> None:
    members, others = records.take(range(20)), records.take(range(20, 40))
    before = record_losses(adapter, records)
    reference = np.stack([before])
    train(
        adapter,
        members,
        TrainingSettings(60, 20, 20, learning_rate=2e-2),
        torch.Generator().manual_seed(0),
    )
    scores = membership_scores(record_losses(adapter, records), reference)
    assert attack(scores[:20], scores[20:]).auc > 0.9
    untouched = membership_scores(before, reference)
    assert attack(untouched[:20], untouched[20:]).auc == 0.5
    assert len(members) == len(others)


def test_random_records_learn_every_token_but_the_first() -> None:
    texts = random_records(5, 50, 7, torch.Generator().manual_seed(0))
    assert texts.ids.shape == (5, 7)
    assert int(texts.ids.max()) < 50
    assert texts.learned.sum() == 5 * 6
