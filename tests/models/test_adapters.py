"""What trains, under which names; saved, loaded and refused."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from fedot.errors import ConfigError
from fedot.models.adapters import (
    AdapterSpec,
    attach,
    blocks_of,
    linear_names,
    load_adapter,
    save_adapter,
)
from fedot.models.anatomy import shallower
from fedot.models.plug_in import plug_in

KINDS = ["lora", "blocks", "full"]


@pytest.mark.parametrize(
    ("num_blocks", "wanted", "ends", "blocks"),
    [
        (6, "ends", 1, (0, 5)),
        (6, "ends", 2, (0, 1, 4, 5)),
        (6, "top", 1, (5,)),
        (6, "top", 2, (4, 5)),
        (6, "ends", 3, (0, 1, 2, 3, 4, 5)),
        (2, "ends", 1, (0, 1)),
        (3, "all", 1, (0, 1, 2)),
        (1, "all", 9, (0,)),
        (6, [4, 1, 4], 1, (1, 4)),
        (6, [0], 1, (0,)),
    ],
)
def test_blocks_that_train(num_blocks, wanted, ends, blocks):
    assert blocks_of(num_blocks, wanted, ends) == blocks


@pytest.mark.parametrize(
    ("num_blocks", "wanted", "ends", "words"),
    [
        (6, "ends", 4, "num_end_blocks is 4; the model has 6 blocks, so it must be at most 3"),
        (1, "ends", 1, "at most 0"),
        (6, [6], 1, r"numbers must lie in 0\.\.5"),
        (6, [-1, 2], 1, r"numbers must lie in 0\.\.5"),
        (6, [], 1, r"numbers must lie in 0\.\.5"),
    ],
)
def test_blocks_that_are_not_there_are_refused(num_blocks, wanted, ends, words):
    with pytest.raises(ConfigError, match=words):
        blocks_of(num_blocks, wanted, ends)


def test_lora_sits_on_every_linear_layer_of_the_blocks_and_nowhere_else(tiny_llama, tiny_gpt2):
    assert linear_names(tiny_llama, (3,)) == tuple(
        f"model.layers.3.{name}"
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    )
    assert linear_names(tiny_gpt2, (0,)) == tuple(
        f"transformer.h.0.{name}"
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_adapters_parameters_train(any_model, spec_for, kind):
    adapter = attach(any_model, spec_for(any_model, kind), range(4))
    training = {id(p) for p in adapter.model.parameters() if p.requires_grad}
    assert training == {id(p) for p in adapter.parameters.values()}
    assert adapter.num_parameters == sum(t.numel() for t in adapter.state().values()) > 0
    assert list(adapter.parameters) == sorted(adapter.parameters)


def test_names_are_those_of_the_full_model(tiny_llama, spec_for):
    spec = spec_for(tiny_llama, "lora", (0, 3))
    emulator = shallower(tiny_llama, (0, 3))
    names = set(attach(emulator, spec, (0, 3)).parameters)
    assert "model.layers.3.self_attn.q_proj.lora_A.weight" in names
    assert not [name for name in names if ".layers.1." in name]
    assert names == set(attach(tiny_llama, spec, range(4)).parameters)


def test_whole_blocks_are_the_blocks_tensors(any_model, spec_for):
    spec = spec_for(any_model, "blocks")
    emulator = shallower(any_model, (0, 2, 3))
    adapter = attach(emulator, spec, (0, 2, 3))
    wanted = {
        name: tensor
        for name, tensor in any_model.named_parameters()
        if ".0." in name or ".3." in name
    }
    state = adapter.state()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_lora_starts_at_zero_change_and_random_a(tiny_llama, spec_for):
    spec = spec_for(tiny_llama, "lora")
    state = attach(tiny_llama, spec, range(4)).state()
    for name, tensor in state.items():
        assert bool(tensor.any()) == ("lora_A" in name), name


def test_lora_a_depends_on_the_seed_alone(make_model, spec_for):
    def state(seed):
        torch.rand(seed + 1)  # whatever else drew numbers before
        model = make_model("llama")
        return attach(model, replace(spec_for(model, "lora"), seed=seed), range(4)).state()

    one, same, other = state(4), state(4), state(5)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if "lora_A" in name)


def test_attaching_leaves_the_random_state_alone(tiny_llama, spec_for):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    attach(tiny_llama, spec_for(tiny_llama, "lora"), range(4))
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_is_float32_also_on_a_bfloat16_model(tiny_llama, spec_for, kind):
    model = tiny_llama.to(torch.bfloat16)
    adapter = attach(model, spec_for(model, kind), range(4))
    assert {p.dtype for p in adapter.parameters.values()} == {torch.float32}
    frozen = {p.dtype for p in adapter.model.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16}


def test_block_that_the_model_lacks_is_refused(tiny_llama, spec_for):
    spec = spec_for(tiny_llama, "blocks", (0, 1))
    with pytest.raises(ConfigError, match=r"trains blocks \[1\]"):
        attach(shallower(tiny_llama, (0, 3)), spec, (0, 3))


def test_layer_map_of_another_depth_is_refused(tiny_llama, spec_for):
    with pytest.raises(ConfigError, match="layer map"):
        attach(tiny_llama, spec_for(tiny_llama, "blocks"), (0, 3))


def test_layer_that_the_model_lacks_is_refused(tiny_llama, tiny_gpt2, spec_for):
    with pytest.raises(ConfigError, match="does not fit the model"):
        attach(tiny_gpt2, spec_for(tiny_llama, "lora"), range(4))


@pytest.mark.parametrize(
    "target",
    [
        "model.layers.0.input_layernorm",
        "model.layers.0.mlp",
        "model.layers.1.mlp.up_proj",
        "model.layers.x.mlp.up_proj",
        "lm_head",
        "q_proj",
        "",
    ],
)
def test_lora_on_anything_but_a_linear_layer_of_its_blocks_is_refused(tiny_llama, target):
    spec = AdapterSpec("lora", (0, 3), 2, 4.0, ("model.layers.0.mlp.up_proj", target))
    with pytest.raises(ConfigError, match="does not fit the model"):
        attach(tiny_llama, spec, range(4))


def test_state_is_a_copy(tiny_llama, spec_for, tune):
    adapter = attach(tiny_llama, spec_for(tiny_llama, "blocks"), range(4))
    before = adapter.state()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    tune(adapter)
    assert all(torch.equal(before[name], kept[name]) for name in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_a_state_restores_it_to_the_bit(any_model, spec_for, tune, logits_of, kind):
    adapter = attach(any_model, spec_for(any_model, kind), range(4))
    tune(adapter, 1)
    state, logits = adapter.state(), logits_of(adapter.model)
    tune(adapter, 2)
    assert not torch.equal(logits_of(adapter.model), logits)
    adapter.load(state)
    assert torch.equal(logits_of(adapter.model), logits)


@pytest.mark.parametrize("fault", ["missing", "extra", "renamed", "shape", "last shape"])
def test_state_that_does_not_fit_is_refused_and_nothing_is_written(
    tiny_llama, spec_for, tune, fault
):
    adapter = attach(tiny_llama, spec_for(tiny_llama, "lora"), range(4))
    before = adapter.state()
    wrong = {name: torch.full_like(tensor, 9.0) for name, tensor in before.items()}
    first, last = min(wrong), max(wrong)
    if fault == "missing":
        del wrong[last]
    elif fault == "extra":
        wrong["zzz"] = torch.zeros(1)
    elif fault == "renamed":
        wrong[last + "x"] = wrong.pop(last)
    else:
        name = first if fault == "shape" else last
        wrong[name] = torch.zeros(wrong[name].numel() + 1)
    with pytest.raises(ConfigError, match="the adapter does not fit the model"):
        adapter.load(wrong)
    after = adapter.state()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_adapter_loads_back_to_the_bit(tmp_path, any_model, spec_for, tune, kind):
    spec = spec_for(any_model, kind)
    adapter = attach(any_model, spec, range(4))
    tune(adapter)
    state = adapter.state()
    save_adapter(tmp_path / "adapter", spec, state, "base")
    loaded_spec, loaded = load_adapter(tmp_path / "adapter")
    assert loaded_spec == spec
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("blocks", [(0, 3), (0, 1, 2, 3)])
def test_lora_directory_loads_with_plain_peft_on_the_full_model(
    tmp_path, make_model, spec_for, tune, logits_of, family, blocks
):
    model = make_model(family)
    spec = spec_for(model, "lora", blocks)
    adapter = attach(shallower(model, blocks), spec, blocks)
    tune(adapter)
    save_adapter(tmp_path / "adapter", spec, adapter.state(), "base")
    plugged = plug_in(model, spec, adapter.state())
    fresh = make_model(family)
    assert not torch.equal(logits_of(plugged.model), logits_of(fresh))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        theirs = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    assert not [w for w in heard if "adapter" in str(w.message)], "keys missing or left over"
    assert torch.equal(logits_of(theirs), logits_of(plugged.model))


SPEC = AdapterSpec("lora", (0, 3), 2, 4.0, ("model.layers.0.q_proj",))


def test_spec_survives_json():
    assert AdapterSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "ia3"},
        {"kind": None},
        {"blocks": ["0"]},
        {"blocks": [0.5]},
        {"blocks": [-1]},
        {"blocks": [3, 0]},
        {"blocks": [0, 0]},
        {"blocks": []},
        {"blocks": "03"},
        {"blocks": 3},
        {"rank": 0},
        {"rank": "8"},
        {"rank": True},
        {"alpha": 0},
        {"alpha": -1.0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"alpha": "16"},
        {"targets": "model"},
        {"targets": [1]},
        {"targets": None},
    ],
)
def test_spec_with_a_wrong_value_is_refused(change):
    with pytest.raises((ValueError, TypeError)):  # what read_bundle and load_adapter expect
        AdapterSpec.from_json(SPEC.to_json() | change)


@pytest.mark.parametrize(
    "fault", ["no folder", "no spec", "no weights", "no json", "list", "kind", "lacks", "cut"]
)
def test_directory_that_is_no_adapter_is_refused_in_one_line(tmp_path, tiny_llama, spec_for, fault):
    folder = tmp_path / "adapter"
    if fault != "no folder":
        spec = spec_for(tiny_llama, "lora")
        save_adapter(folder, spec, attach(tiny_llama, spec, range(4)).state(), "base")
    spec_file, weights = folder / "fedot-adapter.json", folder / "adapter_model.safetensors"
    match fault:
        case "no spec":
            spec_file.unlink()
        case "no weights":
            weights.unlink()
        case "no json":
            spec_file.write_text("{")
        case "list":
            spec_file.write_text("[]")
        case "kind":
            spec_file.write_text(json.dumps(SPEC.to_json() | {"kind": "ia3"}))
        case "lacks":
            spec_file.write_text("{}")
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ConfigError, match="cannot read an adapter from") as caught:
        load_adapter(folder)
    assert "\n" not in str(caught.value)


def test_model_with_an_adapter_has_no_dropout_even_while_training(make_model, spec_for, ids):
    # GPT-2's would draw from the global generator: two runs with one seed would differ.
    model = make_model("gpt2")
    adapter = attach(model, spec_for(model, "lora"), range(4))
    adapter.model.train()
    first, second = (adapter.model(input_ids=ids, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second)
