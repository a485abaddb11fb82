"""Distillation: it helps, and it touches the emulator's middle only."""

from __future__ import annotations

import math

import pytest
import torch

from fedot.data.tokenize import Sequences
from fedot.emulator.distill import _loss, distill
from fedot.models.anatomy import anatomy_of, load_model, shallower

SETTINGS = {"batch_size": 4, "learning_rate": 3e-3, "hidden_weight": 30.0}


@pytest.fixture
def text() -> Sequences:
    """Sixteen windows of sixteen tokens in which the next token depends on the last."""
    rng = torch.Generator().manual_seed(0)
    start = torch.randint(2, 300, (16, 1), generator=rng)
    ids = 2 + (start + 7 * torch.arange(16)) % 298
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    return Sequences(ids, learned)


def taught(full, text, num_steps, ends=1, kept=(0, 1, 3), seed=0, **changes):
    emulator = shallower(full, kept)
    rng = torch.Generator().manual_seed(seed)
    distill(full, emulator, ends, text, num_steps=num_steps, rng=rng, **(SETTINGS | changes))
    return emulator


def losses(full, emulator, text, ends=1):
    """By hand: (LM loss, mismatch where the top begins)."""
    with torch.inference_mode():
        teacher = full(text.ids, output_hidden_states=True)
        student = emulator(text.ids, output_hidden_states=True)
    lm = torch.nn.functional.cross_entropy(
        student.logits[:, :-1].flatten(0, 1), text.ids[:, 1:].flatten()
    )
    # hidden_states[i] is what block i reads: the top's first block reads what the middle wrote.
    t = teacher.hidden_states[full.config.num_hidden_layers - ends]
    s = student.hidden_states[emulator.config.num_hidden_layers - ends]
    scale = t.square().mean(dim=-1, keepdim=True).sqrt()
    return float(lm), float(((t - s) / scale).square().mean())


@pytest.mark.parametrize("ends", [1, 2])
def test_loss_by_hand(make_model, text, ends):
    full = make_model("llama", num_hidden_layers=6)
    emulator = shallower(full, (0, 1, 3, 4, 5))
    language, match = losses(full, emulator, text, ends)
    assert match > 0.01
    got = float(_loss(full, emulator, ends, text.ids, 30.0).detach())
    # Both are float32 means of the same numbers.
    assert got == pytest.approx(language + 30.0 * match, rel=1e-5)


def test_distilling_brings_the_middles_end_closer_to_the_full_models(any_model, text):
    before = losses(any_model, shallower(any_model, (0, 1, 3)), text)
    after = losses(any_model, taught(any_model, text, 40), text)
    # Seen: to a half or less; without training it would stay at 1.
    assert after[1] < 0.8 * before[1]


def test_without_the_hidden_match_the_language_loss_falls(any_model, text):
    before = losses(any_model, shallower(any_model, (0, 1, 3)), text)
    after = losses(any_model, taught(any_model, text, 40, hidden_weight=0.0), text)
    assert after[0] < before[0] - 0.05


@pytest.mark.parametrize(
    ("ends", "kept", "middle"), [(1, (0, 1, 2, 3), {1, 2}), (2, (0, 1, 2, 4, 5), {2})]
)
def test_only_the_middle_changes(make_model, text, ends, kept, middle):
    full = make_model("llama", num_hidden_layers=kept[-1] + 1)
    before = shallower(full, kept).state_dict()
    emulator = taught(full, text, 2, ends, kept)
    anatomy = anatomy_of(emulator)
    changed = {
        anatomy.split_name(name)[0]
        for name, tensor in emulator.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == middle


def test_full_model_stays_bit_identical(any_model, text):
    before = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    grads = [p.requires_grad for p in any_model.parameters()]
    taught(any_model, text, 3)
    after = any_model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None for p in any_model.parameters())
    assert [p.requires_grad for p in any_model.parameters()] == grads
    assert not any_model.training


def test_zero_steps_with_every_block_kept_is_the_full_model(any_model, text):
    emulator = taught(any_model, text, 0, kept=(0, 1, 2, 3))
    with torch.inference_mode():
        assert torch.equal(emulator(text.ids).logits, any_model(text.ids).logits)


def test_zero_steps_hold_in_bfloat16_too(any_model, text, tmp_path):
    any_model.save_pretrained(tmp_path / "model")
    full = load_model(str(tmp_path / "model"), "bfloat16")
    emulator = taught(full, text, 0, kept=(0, 1, 2, 3))
    with torch.inference_mode():
        assert torch.equal(emulator(text.ids).logits, full(text.ids).logits)


def test_bfloat16_model_is_taught_in_float32_and_comes_back_in_bfloat16(tiny_llama, text, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "model")
    full = load_model(str(tmp_path / "model"), "bfloat16")
    emulator = taught(full, text, 3)
    assert {p.dtype for p in emulator.parameters()} == {torch.bfloat16}
    middle = emulator.model.layers[1].mlp.up_proj.weight
    assert not torch.equal(middle, full.model.layers[1].mlp.up_proj.weight)


def test_same_seed_teaches_the_same_whatever_else_drew_numbers(any_model, text):
    torch.manual_seed(1)
    one = taught(any_model, text, 3).state_dict()
    torch.manual_seed(2)
    same = taught(any_model, text, 3).state_dict()
    other = taught(any_model, text, 3, seed=1).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_taught_emulator_is_frozen_and_in_eval_mode(tiny_llama, text):
    emulator = taught(tiny_llama, text, 1)
    assert not emulator.training
    assert not any(p.requires_grad for p in emulator.parameters())


def test_progress_is_told_at_the_start_and_after_every_step(tiny_llama, text):
    told = []
    taught(tiny_llama, text, 3, progress=lambda *step: told.append(step))
    assert told == [("distil the emulator", n, 3) for n in (0, 1, 2, 3)]


def test_single_window_is_enough(tiny_llama, text):
    emulator = taught(tiny_llama, text.take([0]), 2)
    assert all(math.isfinite(float(p.sum())) for p in emulator.parameters())
