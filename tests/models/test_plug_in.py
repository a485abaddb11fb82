"""The second proof, and what leaves fedot after plugging in."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedot.errors import ConfigError
from fedot.models.adapters import attach, load_adapter
from fedot.models.anatomy import anatomy_of, load_model, shallower
from fedot.models.plug_in import export, plug_in

KINDS = ["lora", "blocks", "full"]


def by_hand(model, tensors):
    """The full model with some of its tensors overwritten."""
    changed = copy.deepcopy(model)
    changed.load_state_dict(tensors, strict=False)
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_untouched_adapter_leaves_the_full_model_bit_identical(
    any_model, spec_for, logits_of, kind
):
    before = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    logits = logits_of(any_model)
    spec = spec_for(any_model, kind)
    kept = (0, 1, 2, 3) if kind == "full" else (0, 3)
    untouched = attach(shallower(any_model, kept), spec, kept).state()
    plugged = plug_in(any_model, spec, untouched)
    assert torch.equal(logits_of(plugged.model), logits)
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in plugged.model.state_dict().items()
        if "lora_" not in name
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_blocks_tuned_in_an_emulator_land_on_their_own_blocks(any_model, spec_for, tune, logits_of):
    stack = anatomy_of(any_model).stack
    spec = spec_for(any_model, "blocks", (0, 3))
    on_emulator = attach(shallower(any_model, (0, 2, 3)), spec, (0, 2, 3))
    tune(on_emulator)
    # What is block 2 of the emulator is block 3 of the full model.
    emulated = dict(on_emulator.model.named_parameters())
    tuned = {
        f"{stack}.{full}.{rest}": tensor.detach().clone()
        for here, full in ((0, 0), (2, 3))
        for name, tensor in emulated.items()
        for index, rest in [anatomy_of(any_model).split_name(name)]
        if index == here
    }
    wanted = logits_of(by_hand(any_model, tuned))
    before = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    plugged = plug_in(any_model, spec, on_emulator.state())
    for name, tensor in plugged.model.state_dict().items():
        assert torch.equal(tensor, tuned.get(name, before[name])), name
        if name in tuned and tensor.dim() == 2:
            assert not torch.equal(tensor, before[name]), f"{name} did not move"
    assert torch.equal(logits_of(plugged.model), wanted)


def test_lora_tuned_in_an_emulator_adds_its_product_to_the_right_block(tiny_llama, spec_for, tune):
    spec = spec_for(tiny_llama, "lora", (0, 3))
    before = tiny_llama.state_dict()["model.layers.3.mlp.up_proj.weight"].clone()
    emulator = shallower(tiny_llama, (0, 3))
    on_emulator = attach(emulator, spec, (0, 3))
    tune(on_emulator)
    state = on_emulator.state()
    merged = plug_in(tiny_llama, spec, state).model.merge_and_unload().state_dict()
    a = state["model.layers.3.mlp.up_proj.lora_A.weight"]
    b = state["model.layers.3.mlp.up_proj.lora_B.weight"]
    # By hand: W + alpha / r * B A, with alpha 4 and rank 2. One float32 rounding either way.
    torch.testing.assert_close(
        merged["model.layers.3.mlp.up_proj.weight"], before + 2.0 * (b @ a), rtol=0, atol=1e-6
    )


def test_tuning_through_the_emulator_changes_only_the_adapters_blocks(tiny_llama, spec_for, tune):
    before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    spec = spec_for(tiny_llama, "lora", (0, 3))
    adapter = attach(shallower(tiny_llama, (0, 3)), spec, (0, 3))
    tune(adapter)
    merged = plug_in(tiny_llama, spec, adapter.state()).model.merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed == {name + ".weight" for name in spec.targets}


def test_adapter_of_another_model_is_refused(make_model, spec_for):
    small, wide = make_model("llama"), make_model("llama", hidden_size=64)
    spec = spec_for(small, "lora")
    with pytest.raises(ConfigError, match="the adapter does not fit the model"):
        plug_in(wide, spec, attach(small, spec, range(4)).state())


def test_adapter_of_a_deeper_model_is_refused(make_model, spec_for):
    small, deep = make_model("llama"), make_model("llama", num_hidden_layers=6)
    spec = spec_for(deep, "lora")
    with pytest.raises(ConfigError, match=r"trains blocks \[5\]"):
        plug_in(small, spec, attach(deep, spec, range(6)).state())


@pytest.mark.parametrize("kind", KINDS)
def test_exported_checkpoint_computes_what_was_plugged_in(
    tmp_path, any_model, spec_for, tune, logits_of, tiny_tokenizer, kind
):
    spec = spec_for(any_model, kind)
    adapter = attach(any_model, spec, range(4))
    untuned = logits_of(adapter.model)
    tune(adapter)
    logits = logits_of(adapter.model)
    assert (logits - untuned).abs().max() > 0.01
    export(adapter, tiny_tokenizer, tmp_path / "out", "checkpoint", "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    # Merging rounds W + BA once where two products were added before: float32, logits up to 3.
    atol = 1e-5 if kind == "lora" else 0.0
    torch.testing.assert_close(logits_of(loaded), logits, rtol=0, atol=atol)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the client")["input_ids"] == tiny_tokenizer("the client")["input_ids"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not [name for name in names if "adapter" in name]


# PEFT asks transformers for an attribute that has a new name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_exported_adapter_loads_with_plain_peft(
    tmp_path, checkpoint, spec_for, tune, logits_of, tiny_tokenizer
):
    model = load_model(str(checkpoint))
    spec = spec_for(model, "lora")
    adapter = attach(model, spec, range(4))
    tune(adapter)
    logits = logits_of(adapter.model)
    export(adapter, tiny_tokenizer, tmp_path / "out", "peft", str(checkpoint))
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert torch.equal(logits_of(PeftModel.from_pretrained(base, tmp_path / "out")), logits)
    # And fedot reads its own export again.
    again_spec, state = load_adapter(tmp_path / "out")
    plugged = plug_in(load_model(str(checkpoint)), again_spec, state)
    assert torch.equal(logits_of(plugged.model), logits)
