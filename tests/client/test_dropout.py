"""GPT-2 has dropout: training with it follows the seed, not what else drew numbers."""

from __future__ import annotations

import torch

from fedot.client.training import TrainingSettings, train
from fedot.data.tokenize import Sequences
from fedot.models.adapters import AdapterSpec, attach

SETTINGS = TrainingSettings(num_steps=3, batch_size=4, micro_batch_size=2, learning_rate=1e-2)


def trained(model, global_seed, seed=0):
    ids = torch.arange(2, 98).view(8, 12)
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    adapter = attach(model, AdapterSpec("blocks", (0, 3)), range(4))
    torch.manual_seed(global_seed)
    train(adapter, Sequences(ids, learned), SETTINGS, torch.Generator().manual_seed(seed))
    return adapter.state(), torch.rand(1)


def test_same_seed_trains_the_same_and_leaves_the_random_state_alone(make_model):
    one, drawn = trained(make_model("gpt2"), 1)
    same, _ = trained(make_model("gpt2"), 2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))


def test_dropout_is_on_while_training(make_model):
    # The order of records is the same; only dropout can tell the two apart.
    with_it, _ = trained(make_model("gpt2"), 1)
    without, _ = trained(make_model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), 1)
    assert not all(torch.equal(with_it[name], without[name]) for name in with_it)
