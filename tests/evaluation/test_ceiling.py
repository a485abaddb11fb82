"""The ceiling that recovery is measured against: never worse than not to train at all."""

from __future__ import annotations

import pytest
import torch

from fedot.data.tokenize import Sequences
from fedot.evaluation.ceiling import full_fine_tuning
from fedot.evaluation.quality import measure

SETTINGS = {"max_epochs": 3, "batch_size": 8, "micro_batch_size": 8, "seed": 0}


def sequences(num, seed):
    """Rows in which the next token follows from the last, so that there is something to learn."""
    start = torch.randint(2, 40, (num, 1), generator=torch.Generator().manual_seed(seed))
    ids = 2 + (start + 7 * torch.arange(12)) % 38
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    return Sequences(ids, learned)


@pytest.fixture
def data():
    return {"train_on": sequences(24, 0), "choose_on": sequences(8, 1)}


def tuned(model, data, learning_rates):
    """What the ceiling measures on the very records that choose; `model` is left in that state."""
    return full_fine_tuning(
        lambda: model,
        **data,
        report_on=data["choose_on"],
        learning_rates=learning_rates,
        **SETTINGS,
    ).quality


def test_a_model_with_something_to_learn_gets_better(any_model, data):
    start = measure(any_model, data["choose_on"]).loss
    # Of about 6 nats at the start.
    assert tuned(any_model, data, [3e-3]).loss < start - 0.5


@pytest.mark.parametrize("learning_rates", [[1e-9], [30.0], [30.0, 10.0]])
def test_training_that_only_harms_leaves_the_start(tiny_llama, data, learning_rates):
    start = tuned(tiny_llama, data, [1e-2])
    again = tuned(tiny_llama, data, learning_rates)
    assert again.loss <= start.loss
    if learning_rates != [1e-9]:
        assert torch.equal(again.nll, start.nll)


def test_best_of_the_grid_is_taken_whatever_its_order(make_model, data):
    grids = ([1e-4], [1e-4, 3e-3], [3e-3, 1e-4])
    losses = [tuned(make_model("llama"), data, grid).loss for grid in grids]
    assert losses[1] < losses[0]
    # Trials differ in their order of records, so not to the bit.
    assert losses[2] == pytest.approx(losses[1], abs=0.3)


def test_it_is_the_same_again_with_the_same_seed(make_model, data):
    def run(global_seed):
        torch.manual_seed(global_seed)
        return tuned(make_model("gpt2"), data, [3e-3])

    assert torch.equal(run(0).nll, run(1).nll)


def test_report_records_choose_nothing(make_model, data):
    # Measured on other records, the same state results: the choice was made elsewhere.
    def run(report_on):
        model = make_model("llama")
        q = full_fine_tuning(
            lambda: model, **data, report_on=report_on, learning_rates=[3e-3, 1e-3], **SETTINGS
        )
        return q, model.state_dict()

    (_, one), (_, other) = run(sequences(8, 2)), run(sequences(8, 3))
    assert all(torch.equal(one[name], other[name]) for name in one)
