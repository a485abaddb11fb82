"""Per-example gradients against autograd on single examples, and refusal of what is not exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, OPTConfig

from fedot.client.training import sequence_losses
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.privacy import rows
from fedot.privacy.clipping import clip_factors
from fedot.privacy.dp_sgd import per_example_gradients
from fedot.privacy.per_sample import PerExampleGradients

AdapterOn = Callable[[nn.Module, str], Adapter]
OneByOne = Callable[..., Tensor]
# float32: sums over 12 tokens in another order, on values of up to about 1
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def found(
    model: nn.Module,
    records: Sequences,
    losses: Callable[[nn.Module, Sequences], Tensor] = sequence_losses,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, (B, P), norms, and the sum clipped to half the median norm, in autograd's order."""
    gradients = PerExampleGradients(model)
    model.train()
    try:
        gradients.backward(losses(model, records))
        norms = gradients.norms()
        summed = gradients.weighted_sum(clip_factors(norms, float(norms.median()) / 2))
        in_order = [gradients.split(row) for row in (*gradients.matrix(), summed)]
        flat = torch.stack([torch.cat([v.flatten() for v in values]) for values in in_order])
    finally:
        gradients.cleanup()
        model.eval()
    return flat[:-1], norms, flat[-1]


def assert_exact(
    model: nn.Module,
    records: Sequences,
    one_by_one: OneByOne,
    losses: Callable[[nn.Module, Sequences], Tensor] = sequence_losses,
) -> None:
    matrix, norms, clipped = found(model, records, losses)
    expected = one_by_one(model, records, losses)
    torch.testing.assert_close(matrix, expected, **CLOSE)
    expected_norms = expected.norm(dim=1)
    torch.testing.assert_close(norms, expected_norms, **CLOSE)
    factors = clip_factors(expected_norms, float(expected_norms.median()) / 2)
    assert (factors < 1).any()
    torch.testing.assert_close(clipped, factors @ expected, **CLOSE)


@pytest.fixture(params=["formed", "outer", "as chosen"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether matrices' gradients are formed for every row, or stay outer products."""
    if request.param != "as chosen":
        monkeypatch.setattr(rows, "_is_large", lambda parameter: parameter.dim() > 1)
        is_outer = request.param == "outer"
        monkeypatch.setattr(rows, "_stays_outer", lambda gradient, place: is_outer)
    return str(request.param)


@pytest.mark.parametrize("kind", ["lora", "blocks", "full"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_norms_and_clipped_sums_equal_autograd_on_single_examples(
    make_model: Callable[..., nn.Module],
    adapter_on: AdapterOn,
    records: Sequences,
    one_by_one: OneByOne,
    family: str,
    tied: bool,
    kind: str,
    form: str,
) -> None:
    """Also GPT-2's learned positions, which its forward looks up once for all rows."""
    assert_exact(adapter_on(make_model(family, tied=tied), kind).model, records, one_by_one)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["lora", "blocks"])
def test_activation_checkpointing_changes_nothing(
    tiny_llama: nn.Module,
    adapter_on: AdapterOn,
    records: Sequences,
    one_by_one: OneByOne,
    kind: str,
    reentrant: bool,
) -> None:
    expected = one_by_one(adapter_on(tiny_llama, kind).model, records)
    tiny_llama.enable_input_require_grads()
    tiny_llama.activation_checkpointing_enable({"use_reentrant": reentrant})
    matrix, norms, _ = found(tiny_llama, records)
    torch.testing.assert_close(matrix, expected, **CLOSE)
    torch.testing.assert_close(norms, expected.norm(dim=1), **CLOSE)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("bits", [4, 8])
def test_lora_on_a_quantized_base_is_exact(
    make_model: Callable[..., nn.Module],
    tmp_path: Path,
    records: Sequences,
    one_by_one: OneByOne,
    bits: int,
) -> None:
    make_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, llm_int8_threshold=0.0
    )
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantization, device_map="cpu"
    )
    assert "bitsandbytes" in type(base.model.layers[0].mlp.up_proj).__module__
    model = peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    assert_exact(model, records, one_by_one)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_int8_outliers_that_tie_rows_together_are_refused(checkpoint: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    model = peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="llm_int8_threshold is 6"):
        PerExampleGradients(model)


def peft_model(base: nn.Module, config: peft.PeftConfig) -> nn.Module:
    """With every tensor that trains moved off its start, where gradients can be zero."""
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def last_losses(model: nn.Module, batch: Sequences) -> Tensor:
    """Per-sequence losses where a prompt comes before the tokens."""
    logits = model(input_ids=batch.ids).logits[:, -batch.ids.shape[1] : -1]
    return F.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none").mean(dim=1)


ATTENTION = ["q_proj", "v_proj"]
EXACT = {
    "rsLoRA": peft.LoraConfig(r=4, target_modules=ATTENTION, use_rslora=True),
    "LoRA with biases": peft.LoraConfig(r=4, target_modules=ATTENTION, lora_bias=True),
    "LoRA and a head": peft.LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["lm_head"]),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "prefixes": peft.PrefixTuningConfig(num_virtual_tokens=4),
    "projected prefixes": peft.PrefixTuningConfig(
        num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=16
    ),
}
REFUSED = {
    "DoRA": (peft.LoraConfig(r=4, target_modules=ATTENTION, use_dora=True), "DoraLinearLayer"),
    "LoRA on embeddings": (
        peft.LoraConfig(r=4, target_modules=["embed_tokens"]),
        "lora_embedding_A",
    ),
    "IA3": (
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        "ia3_l: ParameterDict",
    ),
    "VeRA": (peft.VeraConfig(r=4, target_modules=ATTENTION), "vera_lambda"),
    "AdaLoRA": (peft.AdaLoraConfig(target_modules=ATTENTION, total_step=10), "lora_A"),
    "LoHa": (peft.LoHaConfig(r=4, target_modules=ATTENTION), "hada"),
    "prompts": (peft.PromptTuningConfig(num_virtual_tokens=4), "once for the whole batch"),
    "p-tuning": (
        peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16),
        "once for the whole batch",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", EXACT)
def test_other_peft_kinds_that_are_let_pass_are_exact(
    tiny_llama: nn.Module, whole_records: Sequences, one_by_one: OneByOne, kind: str
) -> None:
    assert_exact(peft_model(tiny_llama, EXACT[kind]), whole_records, one_by_one, last_losses)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_without_exact_gradients_are_refused_with_the_reason(
    tiny_llama: nn.Module, kind: str
) -> None:
    """Pitfalls 3 and 13."""
    config, reason = REFUSED[kind]
    with pytest.raises(ValueError, match=reason):
        PerExampleGradients(peft_model(tiny_llama, config))


def test_positions_of_an_unknown_kind_are_refused() -> None:
    """Pitfall 3: OPT's own class of embedding; a subclass may compute anything."""
    config = OPTConfig(
        vocab_size=320, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="embed_positions: OPTLearnedPositionalEmbedding"):
        PerExampleGradients(model)


class Small(nn.Module):
    """(B, T) ids in, one loss a row out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(300, 8, padding_idx=7)
        self.twice = nn.Linear(8, 8)
        self.norm: nn.Module = nn.LayerNorm(8)
        self.spare = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.twice(self.twice(x).relu())
        return self.spare(self.norm(x)).square().sum(dim=(1, 2)) / 50


@pytest.fixture
def whole_records(records: Sequences) -> Sequences:
    """None is short: `take` would cut off its end, and these losses count every token."""
    return records.take([0, 2, 3, 4, 5])


def run_small(model: nn.Module, batch: Sequences) -> Tensor:
    result: Tensor = model(batch.ids)
    return result


def test_a_layer_that_is_called_twice_is_exact(
    whole_records: Sequences, one_by_one: OneByOne, form: str
) -> None:
    """Pitfall 6: the cross term of both calls counts. Also a padding token, which never trains."""
    whole_records.ids[2, 3] = 7
    assert_exact(Small(), whole_records, one_by_one, run_small)


class ShiftedRMSNorm(nn.Module):
    """As Gemma's: the weight counts from 1, and the parameter is called what it is everywhere."""

    def __init__(self, shift: float = 1.0, power: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, generator=torch.Generator().manual_seed(0)))
        self.eps, self.shift, self.power = 1e-6, shift, power

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (self.shift + self.weight) ** self.power * normed


def test_norms_of_other_families_are_exact(whole_records: Sequences, one_by_one: OneByOne) -> None:
    model = Small()
    model.norm = ShiftedRMSNorm()
    assert_exact(model, whole_records, one_by_one, run_small)


def test_a_norm_that_only_has_the_name_is_refused() -> None:
    model = Small()
    model.norm = ShiftedRMSNorm(power=2.0)
    with pytest.raises(ValueError, match="norm: ShiftedRMSNorm holds parameters that train"):
        PerExampleGradients(model)


def test_statistics_over_the_batch_are_refused() -> None:
    model = Small()
    model.norm = nn.BatchNorm1d(12)
    model.norm.requires_grad_(False)
    with pytest.raises(ValueError, match="ties rows together"):
        PerExampleGradients(model)


def test_statistics_that_training_would_take_over_the_batch_are_refused() -> None:
    """Until the model is told to train, they are constants."""
    model = Small()
    model.norm = nn.BatchNorm1d(12).requires_grad_(False)
    model.eval()
    with pytest.raises(ValueError, match="ties rows together"), per_example_gradients(model):
        pass


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_follow_the_longest_row_are_refused(kind: str) -> None:
    """One long record would change its neighbours' gradients, by up to six times the bound."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [50.0] * 4}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 8.0}
    rope |= {"original_max_position_embeddings": 8, **factors} if kind == "longrope" else {}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=320, num_attention_heads=4, rope_parameters=rope, **shape)
    with pytest.raises(ValueError, match=f"rotary_emb: its rotary positions are '{kind}'"):
        PerExampleGradients(AutoModelForCausalLM.from_config(config))


def test_a_weight_used_outside_its_module_is_refused(records: Sequences) -> None:
    """Its gradient there would be missing from norm and sum, and nobody would notice."""

    class Sneaky(Small):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + self.twice.weight.square().sum() / 100

    with pytest.raises(ValueError, match=r"twice\.weight is used outside its own module"):
        found(Sneaky(), records, run_small)


def test_a_parameter_that_no_gradient_reaches_is_refused(records: Sequences) -> None:
    """Pitfall 7: it would random-walk while epsilon accrues."""
    model = Small()
    model.unused = nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"no gradient reached unused\.weight"):
        found(model, records, run_small)


def test_a_layer_that_mixes_rows_is_refused(records: Sequences) -> None:
    """Pitfall 3: a batch dimension of 1 in the middle of a batch of 6."""

    class Mixing(Small):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            mixed = self.twice(x.reshape(1, -1, 8)).reshape(x.shape)
            return self.norm(mixed).square().sum(dim=(1, 2))

    with pytest.raises(ValueError, match="saw 1 rows in a batch of 6"):
        found(Mixing(), records, run_small)


def test_a_loss_over_the_whole_batch_is_refused(records: Sequences) -> None:
    """Pitfall 1: it is no sum of the rows' own losses."""
    with pytest.raises(ValueError, match=r"one loss per row, shape \(B,\)"):
        found(Small(), records, lambda model, batch: run_small(model, batch).mean())


def test_reentrant_checkpointing_that_loses_gradients_is_refused(records: Sequences) -> None:
    """Torch only warns; the layers inside would get noise alone."""

    class Checkpointed(Small):
        def forward(self, ids: Tensor) -> Tensor:
            x = recomputed(self.twice, self.embed(ids), use_reentrant=True)
            return self.norm(x).square().sum(dim=(1, 2))

    model = Checkpointed()
    model.embed.requires_grad_(False)
    with (
        pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
        pytest.raises(ValueError, match=r"no gradient reached .*enable_input_require_grads"),
    ):
        found(model, records, run_small)


def test_nothing_that_trains_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        PerExampleGradients(Small().requires_grad_(False))


@pytest.mark.parametrize("kind", ["lora", "blocks"])
def test_model_is_left_as_it_was_found(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences, kind: str
) -> None:
    adapter = adapter_on(tiny_llama, kind)
    found(adapter.model, records)
    trained = {id(p) for p in adapter.parameters.values()}
    for parameter in adapter.model.parameters():
        assert parameter.requires_grad == (id(parameter) in trained)
        assert not hasattr(parameter, "grad_sample")
    for module in adapter.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_requires_grad_is_restored_when_a_forward_pass_fails(records: Sequences) -> None:
    class Failing(Small):
        def forward(self, ids: Tensor) -> Tensor:
            return self.twice(self.embed(ids)[..., :3])

    model = Failing()
    with pytest.raises(RuntimeError):
        found(model, records, run_small)
    assert model.twice.weight.requires_grad


def flops_of(step: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def test_the_batchs_own_weight_gradients_are_never_formed(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    model = adapter_on(tiny_llama, "lora").model
    plain = flops_of(lambda: sequence_losses(model, records).sum().backward())
    model.zero_grad(set_to_none=True)
    gradients = PerExampleGradients(model)
    ours = flops_of(lambda: gradients.backward(sequence_losses(model, records)))
    gradients.cleanup()
    # Formed twice, LoRA's would come to about 1.05 at this size.
    assert ours <= 1.001 * plain
