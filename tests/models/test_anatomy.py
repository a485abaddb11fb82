"""Where blocks are, and shallower models that compute the same as what they were cut from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fedot.errors import ConfigError
from fedot.models.anatomy import (
    Anatomy,
    anatomy_of,
    load_model,
    load_tokenizer,
    pick_device,
    shallower,
)


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of the checkpoint to spoil."""
    return shutil.copytree(checkpoint, tmp_path / "broken")


def test_stack_is_found_by_structure(tiny_llama, tiny_gpt2):
    assert anatomy_of(tiny_llama) == Anatomy("model.layers", 4)
    assert anatomy_of(tiny_gpt2) == Anatomy("transformer.h", 4)


def test_names_are_split_and_renumbered():
    anatomy = Anatomy("model.layers", 24)
    assert anatomy.block_prefix(3) == "model.layers.3."
    assert anatomy.split_name("model.layers.13.mlp.up_proj.weight") == (13, "mlp.up_proj.weight")
    assert anatomy.split_name("model.norm.weight") == (None, "model.norm.weight")
    assert anatomy.split_name("model.layers_norm.weight")[0] is None
    assert anatomy.renumber("model.layers.1.mlp.weight", {1: 22}) == "model.layers.22.mlp.weight"
    assert anatomy.renumber("lm_head.weight", {}) == "lm_head.weight"


def test_dropping_nothing_leaves_logits_bit_identical(any_model, logits_of):
    same = shallower(any_model, range(4))
    assert torch.equal(logits_of(same), logits_of(any_model))


def test_dropping_nothing_holds_in_bfloat16(any_model, logits_of, tmp_path):
    any_model.save_pretrained(tmp_path / "model")
    model = load_model(str(tmp_path / "model"), "bfloat16")
    same = shallower(model, range(4))
    assert same.dtype == torch.bfloat16
    assert torch.equal(logits_of(same), logits_of(model))


def test_dropped_blocks_are_skipped_and_nothing_else_changes(any_model, logits_of):
    small = shallower(any_model, (0, 2, 3))
    # The same by hand: leave block 1 out of the full model's own stack.
    stack = any_model.get_submodule(anatomy_of(any_model).stack)
    del stack[1]
    any_model.config.num_hidden_layers = 3
    assert torch.equal(logits_of(small), logits_of(any_model))


def test_kept_blocks_are_copies_of_the_right_ones(any_model):
    anatomy = anatomy_of(any_model)
    small = shallower(any_model, (0, 2, 3))
    theirs = dict(small.named_parameters())
    for name, parameter in any_model.named_parameters():
        index, _ = anatomy.split_name(name)
        if index == 1:
            continue
        copy = theirs[anatomy.renumber(name, {0: 0, 2: 1, 3: 2})]
        assert torch.equal(copy, parameter)
        assert copy.data_ptr() != parameter.data_ptr(), f"{name} is shared with the full model"


def test_tied_stays_tied_and_untied_untied(any_model):
    small = shallower(any_model, (0, 3))
    tied = small.get_input_embeddings().weight is small.get_output_embeddings().weight
    assert tied == any_model.config.tie_word_embeddings


def test_every_block_is_renumbered_from_zero(any_model):
    small = shallower(any_model, (0, 2, 3))
    numbers = [m.layer_idx for m in small.modules() if getattr(m, "layer_idx", None) is not None]
    assert sorted(set(numbers)) == [0, 1, 2]
    assert small.config.num_hidden_layers == 3


def test_generating_with_a_cache_is_right_after_renumbering(any_model, ids):
    small = shallower(any_model, (0, 2, 3))
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    mask = torch.ones_like(ids)
    cached = small.generate(input_ids=ids, attention_mask=mask, use_cache=True, **settings)
    plain = small.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(cached, plain)


def test_per_layer_lists_of_the_config_are_cut_to_the_kept_blocks(tiny_llama):
    tiny_llama.config.layer_types = ["a", "b", "c", "d"]
    tiny_llama.config.no_rope_layers = [1, 1, 1, 0]
    tiny_llama.config.layers_of_another_depth = [5, 6, 7]
    tiny_llama.config.four_words = ["p", "q", "r", "s"]
    small = shallower(tiny_llama, (0, 3)).config
    assert small.layer_types == ["a", "d"]
    assert small.no_rope_layers == [1, 0]
    assert small.layers_of_another_depth == [5, 6, 7]
    assert small.four_words == ["p", "q", "r", "s"]
    assert tiny_llama.config.layer_types == ["a", "b", "c", "d"]
    assert tiny_llama.config.num_hidden_layers == 4


def test_unproven_family_is_refused_by_name():
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with pytest.raises(ConfigError, match=r"family 'qwen2'; supported are llama, gpt2"):
        anatomy_of(Qwen2ForCausalLM(config))


@pytest.mark.parametrize("change", ["a second stack", "unequal blocks"])
def test_anything_but_one_stack_of_equal_blocks_is_refused(tiny_llama, change):
    if change == "a second stack":
        tiny_llama.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    else:
        tiny_llama.model.layers[2] = nn.Identity()
    with pytest.raises(ConfigError, match=r"the model has [02] stacks of 4 equal blocks"):
        anatomy_of(tiny_llama)


def test_checkpoint_loads_in_eval_mode(checkpoint, make_model, logits_of):
    model = load_model(str(checkpoint))
    assert not model.training
    assert torch.equal(logits_of(model), logits_of(make_model("llama")))
    assert load_model(str(checkpoint), "bfloat16").dtype == torch.bfloat16


def test_loading_what_was_saved_changes_no_bit(any_model, tmp_path, logits_of):
    any_model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits_of(load_model(str(tmp_path / "model"))), logits_of(any_model))


def test_loading_leaves_the_random_state_alone(checkpoint):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    load_model(str(checkpoint))
    assert torch.equal(torch.rand(1), wanted)


def refusal(folder) -> str:
    with pytest.raises(ConfigError) as caught:
        anatomy_of(load_model(str(folder)))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folder_without_checkpoint_is_refused(tmp_path):
    assert "no checkpoint at" in refusal(tmp_path)
    assert "no checkpoint at" in refusal(tmp_path / "missing")


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_type": "no-such-model"}', "\x00"])
def test_unreadable_model_config_is_refused(broken, config):
    (broken / "config.json").write_text(config)
    refusal(broken)


def test_encoder_decoder_is_no_causal_model(tmp_path):
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    assert "which is no causal language model" in refusal(tmp_path / "t5")


def test_encoder_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    assert "'bert'" in refusal(tmp_path / "bert")


def test_classifier_is_refused_rather_than_given_a_random_head(tmp_path, tiny_llama):
    config = tiny_llama.config
    config.num_labels = 2
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    assert "lm_head.weight" in refusal(tmp_path / "classifier")


def test_checkpoint_that_lacks_a_tensor_is_refused(broken):
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.2.mlp.up_proj.weight" in refusal(broken)


def test_checkpoint_with_a_tensor_of_another_shape_is_refused(broken):
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(31)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    refusal(broken)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_truncated_weights_are_refused(broken, keep):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refusal(broken)


def test_pickled_weights_are_refused_unread(broken, tiny_llama):
    (broken / "model.safetensors").unlink()
    torch.save(tiny_llama.state_dict(), broken / "pytorch_model.bin")
    refusal(broken)


def test_code_that_comes_with_a_checkpoint_never_runs(broken, tmp_path):
    config = json.loads((broken / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load_model(str(broken))
    assert not (tmp_path / "ran").exists()


def test_checkpoint_without_tokenizer_is_refused(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="cannot load a tokenizer"):
        load_tokenizer(str(tmp_path / "bare"))


def test_tokenizer_reads_its_own_words(checkpoint):
    tokenizer = load_tokenizer(str(checkpoint))
    text = "the client trains\n  é 漢"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_missing_gpu_is_refused_only_when_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match=r"model\.device is cuda"):
        pick_device("cuda")
