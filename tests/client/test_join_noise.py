"""Noise at the join: where it is, how large, whose numbers, and that none is left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedot.client.join_noise import from_noise_source, join_noise, seeded
from fedot.client.training import PrivateSettings, TrainingSettings, train, train_privately
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter, AdapterSpec, attach, linear_names, unwrapped
from fedot.models.anatomy import anatomy_of
from fedot.privacy.noise import NoiseSource

SETTINGS = TrainingSettings(num_steps=3, batch_size=4, micro_batch_size=4, learning_rate=1e-2)
KEY = bytes(range(32))


def some_records() -> Sequences:
    ids = torch.randint(4, 300, (12, 10), generator=torch.Generator().manual_seed(0))
    return Sequences(ids, torch.ones_like(ids, dtype=torch.bool))


def some_adapter(model: Any, kind: str) -> Adapter:
    targets = linear_names(model, (0, 3)) if kind == "lora" else ()
    return attach(model, AdapterSpec(kind, (0, 3), 2, 4.0, targets), range(4))


def block_inputs(adapter: Adapter) -> list[Tensor]:
    """What every block gets; the model's own `hidden_states` are taken before hooks run."""
    seen: list[Tensor] = []
    base = unwrapped(adapter.model)
    stack = base.get_submodule(anatomy_of(base).stack)
    handles = [
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        for block in stack
    ]
    adapter.model(some_records().ids)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", ["lora", "blocks"])
def test_noise_has_the_stated_size_and_only_the_top_gets_it(any_model: Any, kind: str) -> None:
    adapter = some_adapter(any_model, kind)
    plain = block_inputs(adapter)
    with join_noise(adapter, 0.3, seeded(torch.Generator().manual_seed(1))):
        noised = block_inputs(adapter)
    for below in range(3):
        assert torch.equal(plain[below], noised[below])
    rms = plain[3].square().mean(dim=-1, keepdim=True).sqrt()
    added = (noised[3] - plain[3]) / rms
    # 12 x 10 x 32 numbers: the stddev of their stddev is 0.3 / sqrt(2 x 3840), 0.0034.
    assert added.std().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(plain[3], block_inputs(adapter)[3])


def test_scale_zero_trains_to_the_same_bits(make_model: Any) -> None:
    states = []
    for scale in (0.0, 0.0, 0.2, 0.2):
        adapter = some_adapter(make_model("llama"), "blocks")
        settings = replace(SETTINGS, join_noise=scale)
        train(adapter, some_records(), settings, torch.Generator().manual_seed(3))
        states.append(adapter.state())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        assert torch.equal(states[2][name], states[3][name])
    assert any(not torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())


def test_under_dp_its_numbers_come_from_the_cryptographic_source(make_model: Any) -> None:
    """Foreseeable numbers would let one record more move the noise of all rows behind it."""

    def state_after(key: bytes) -> dict[str, Tensor]:
        adapter = some_adapter(make_model("llama"), "lora")
        # q = 1 and z = 0: nothing but noise at the join is left to be random.
        private = PrivateSettings(1.0, 0.0, 1.0)
        settings = replace(SETTINGS, join_noise=0.5)
        train_privately(adapter, some_records(), settings, private, NoiseSource(key))
        return adapter.state()

    torch.manual_seed(0)
    one = state_after(KEY)
    torch.manual_seed(1)
    again, other = state_after(KEY), state_after(KEY[::-1])
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_normals_of_the_source_have_the_shape() -> None:
    drawn = from_noise_source(NoiseSource(KEY))(torch.Size((3, 5, 7)))
    assert drawn.shape == (3, 5, 7)
    assert drawn.dtype == torch.float32


def test_nothing_is_noised_where_no_frozen_middle_stands_below(tiny_llama: Any) -> None:
    adapter = attach(tiny_llama, AdapterSpec("full", (0, 1, 2, 3)), range(4))
    assert adapter.join is None
    plain = block_inputs(adapter)
    with join_noise(adapter, 0.5, seeded(torch.Generator().manual_seed(1))):
        assert torch.equal(plain[-1], block_inputs(adapter)[-1])
