"""Tokens told from a gradient's span: found without noise, lost under it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedot.client.training import (
    PrivateSettings,
    TrainingSettings,
    sequence_losses,
    train_privately,
)
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.privacy.noise import KEY_BYTES, NoiseSource
from fedot.studies.canaries import observed_steps
from fedot.studies.inversion import embedding_inputs, recover_tokens


def plain_gradient(adapter: Adapter, records: Sequences) -> dict[str, torch.Tensor]:
    sequence_losses(adapter.model, records).sum().backward()
    grads = {name: p.grad.clone() for name, p in adapter.parameters.items()}
    adapter.model.zero_grad(set_to_none=True)
    return grads


def private_gradient(adapter: Adapter, records: Sequences, noise: float) -> dict[str, torch.Tensor]:
    settings = TrainingSettings(1, len(records), len(records), learning_rate=1e-9)
    with observed_steps(list(adapter.parameters.values())) as steps:
        private = PrivateSettings(1.0, noise, 1.0)
        train_privately(adapter, records, settings, private, NoiseSource(bytes(KEY_BYTES)))
    pieces = steps[0].split([p.numel() for p in adapter.parameters.values()])
    named = zip(adapter.parameters.items(), pieces, strict=True)
    return {name: flat.view(p.shape) for (name, p), flat in named}


@pytest.mark.parametrize(
    ("kind", "at_least"),
    # The span of whole matrices holds all 8 tokens; four directions a matrix hold a part of them.
    [("blocks", 0.85), ("lora", 0.5), ("full", 0.3)],
)
def test_one_short_records_tokens_are_found_without_dp_and_lost_under_it(
    make_model: Callable[..., Any],
    make_adapter: Callable[..., Adapter],
    records: Sequences,
    kind: str,
    at_least: float,
) -> None:
    adapter = make_adapter(make_model("llama"), kind)
    one = Sequences(records.ids[:1, :8], records.learned[:1, :8])
    open_ = recover_tokens(plain_gradient(adapter, one), adapter, one)
    assert open_.tokens == 8
    assert open_.chance == pytest.approx(8 / 320)
    assert open_.precision >= at_least
    hidden = recover_tokens(private_gradient(adapter, one, noise=4.0), adapter, one)
    # Under noise 8 guesses of 320 hit more than 3 of 8 by chance once in 10^5.
    assert hidden.precision <= 3 / 8


def test_inputs_are_those_of_the_first_layers_that_read_embeddings(adapter: Adapter) -> None:
    names, inputs = embedding_inputs(adapter)
    assert names == [
        f"model.layers.0.self_attn.{part}_proj.lora_A.weight" for part in ("k", "q", "v")
    ]
    assert inputs.shape == (320, 32)


def test_gpt2s_fused_layer_is_read_the_right_way_round(
    tiny_gpt2: Any, make_adapter: Callable[..., Adapter], records: Sequences
) -> None:
    adapter = make_adapter(tiny_gpt2, "blocks")
    names, _ = embedding_inputs(adapter)
    assert names == ["transformer.h.0.attn.c_attn.weight"]
    one = Sequences(records.ids[:1, :2], records.learned[:1, :2])
    found = recover_tokens(plain_gradient(adapter, one), adapter, one)
    assert found.precision >= 0.5


def test_without_block_zero_there_is_nothing_to_read(make_model: Callable[..., Any]) -> None:
    from fedot.models.adapters import AdapterSpec, attach

    adapter = attach(make_model("llama"), AdapterSpec("blocks", (2, 3)), range(4))
    assert embedding_inputs(adapter) is None
    assert recover_tokens({}, adapter, Sequences(torch.zeros(1, 2), torch.ones(1, 2))) is None
