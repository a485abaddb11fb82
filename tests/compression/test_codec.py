"""Round trips, sizes and determinism of the public face."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fedot.compression.codec import (
    Chain,
    Step,
    TensorSpec,
    decode,
    decode_from,
    encode,
    encode_to,
    encode_with_feedback,
    plan,
    spec_of,
    text_of,
)
from fedot.errors import WireError

FLOAT32 = plan(Step("float32"))
INT8 = plan(Step("int8"), Step("deflate"))
CHAINS = [
    FLOAT32,
    plan(Step("float32"), Step("planes"), Step("zstd")),
    plan(Step("bfloat16")),
    plan(Step("bfloat16"), Step("planes"), Step("deflate")),
    plan(Step("float16"), Step("planes"), Step("gzip")),
    INT8,
    plan(Step("int8", {"min_step": 0})),
    plan(Step("int8", {"block": 100, "min_step": 0, "rounding": "stochastic"}), Step("zstd")),
    plan(Step("nf4"), Step("deflate")),
    plan(Step("top_k", {"keep_ratio": 1.0}), Step("float32")),
    plan(Step("top_k", {"keep_ratio": 1.0}), Step("bfloat16"), Step("planes"), Step("deflate")),
]
# Largest error beside the largest value: half a step of bfloat16 (2^-8) and float16 (2^-11), half
# the least step of int8 (0.016; more than a whole one of 1/127), half of NF4's widest gap (0.152).
TOLERANCES = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 0.016, "nf4": 0.153}


def lora_update(seed: int = 0) -> dict[str, Tensor]:
    """About ten thousand values in thirty tensors, as a small LoRA update has."""
    rng = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{layer}.self_attn.{name}_proj.lora_{side}.weight": 1e-3
        * torch.randn((8, 42) if side == "A" else (42, 8), generator=rng)
        for layer in range(5)
        for name in "qkv"
        for side in "AB"
    }


def large(num_values: int = 600_001) -> dict[str, Tensor]:
    """Three frames, the last one short, over tensors of mixed dtypes and layouts."""
    rng = torch.Generator().manual_seed(1)
    values = torch.randn(num_values, generator=rng)
    return {
        "b.half": values[:1000].half(),
        "a.brain": values[1000:300_000].bfloat16().reshape(1000, 299),
        "c.turned": values[300_000:600_000].reshape(1000, 300).T,
        "d.empty": torch.empty(0, 7),
        "e.scalar": values[600_000],
    }


def worst_error(sent: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> float:
    """Largest difference over the largest value of all."""
    top = max(float(t.abs().max()) for t in sent.values() if t.numel())
    return (
        max(
            float((sent[n].float() - received[n].float()).abs().max())
            for n in sent
            if sent[n].numel()
        )
        / top
    )


@pytest.mark.parametrize("chain", CHAINS, ids=text_of)
@pytest.mark.parametrize("tensors", [lora_update(), large()], ids=["lora", "large"])
def test_what_is_decoded_is_what_was_sent(chain: Chain, tensors: dict[str, Tensor]) -> None:
    received = decode(encode(tensors, chain, seed=3).payload, spec_of(tensors), [chain])
    value_step = next(step.name for step in chain if step.name in TOLERANCES)
    assert spec_of(received) == spec_of(tensors)
    assert all(tensor.is_contiguous() for tensor in received.values())
    # 2^-8 more: a lossy value is rounded once more where the tensor itself is bfloat16.
    slack = 2**-8 if "a.brain" in tensors and TOLERANCES[value_step] else 0.0
    assert worst_error(tensors, received) <= TOLERANCES[value_step] + slack


@pytest.mark.parametrize("chain", [c for c in CHAINS if c != INT8], ids=text_of)
def test_a_value_that_a_chain_can_hold_comes_back_bit_for_bit(chain: Chain) -> None:
    tensors = {"w": torch.tensor([0.0, 1.0, -1.0, 0.0]).repeat(100)}
    received = decode(encode(tensors, chain, seed=0).payload, spec_of(tensors), [chain])
    # Scaling by 1/127 and back may cost the last bit of a float32.
    torch.testing.assert_close(received["w"], tensors["w"], rtol=2**-23, atol=0)


@pytest.mark.parametrize("steps", [(), (Step("planes"), Step("deflate"))])
def test_bfloat16_tensors_pass_through_bfloat16_bit_for_bit(steps: tuple[Step, ...]) -> None:
    bits = torch.randint(-(2**15), 2**15, (70_000,), generator=torch.Generator().manual_seed(0))
    values = bits.to(torch.int16).view(torch.bfloat16)
    tensors = {"w": values[values.isfinite() & (values.abs() < 2.0**39)]}
    chain = plan(Step("bfloat16"), *steps)
    received = decode(encode(tensors, chain).payload, spec_of(tensors), [chain])
    assert torch.equal(received["w"].view(torch.int16), tensors["w"].view(torch.int16))


def test_int8_and_deflate_of_a_small_lora_update_take_a_quarter_of_float32() -> None:
    sent = encode(lora_update(), INT8)
    assert list(sent.bytes_after) == ["float32", "int8", "deflate", "payload"]
    assert sent.bytes_after["float32"] == 4 * 10_080
    assert sent.bytes_after["payload"] == len(sent.payload) <= 0.25 * 4 * 10_080


@pytest.mark.parametrize("chain", CHAINS, ids=text_of)
def test_workers_and_repetition_change_no_byte(chain: Chain) -> None:
    one, two, again = (encode(large(), chain, seed=5, workers=w).payload for w in (1, 2, 2))
    assert one == two == again


def test_bytes_after_counts_what_each_operator_leaves() -> None:
    chain = plan(Step("top_k", {"keep_ratio": 0.1}), Step("int8"), Step("deflate"))
    sent = encode({"w": torch.randn(10_000, generator=torch.Generator().manual_seed(0))}, chain)
    after = sent.bytes_after
    assert list(after) == ["float32", "top_k", "int8", "deflate", "payload"]
    assert after["float32"] == 40_000
    assert 5000 <= after["top_k"] <= 5000 + 9000 // 255
    assert after["int8"] == after["top_k"] - 3000 + 4 * 4
    assert after["deflate"] < after["int8"]
    assert after["payload"] == len(sent.payload)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_come_back_and_stay_when_their_siblings_go(dtype: torch.dtype) -> None:
    values = torch.randn(2, 2_500_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = {"a": values[0], "b": values[1].reshape(2500, 1000)}
    received = decode(encode(tensors, FLOAT32).payload, spec_of(tensors), [FLOAT32])
    del received["a"]
    received["b"] += 1
    assert torch.equal(received["b"], tensors["b"] + 1)


def test_a_strided_vector_can_be_sent() -> None:
    tensors = {"w": torch.arange(1000).float()[::3]}
    received = decode(encode(tensors, FLOAT32).payload, spec_of(tensors), [FLOAT32])
    assert torch.equal(received["w"], tensors["w"])


def test_nothing_at_all_can_be_sent() -> None:
    for tensors in ({}, {"empty": torch.empty(3, 0)}):
        received = decode(encode(tensors, INT8).payload, spec_of(tensors), [INT8])
        assert spec_of(received) == spec_of(tensors)


def test_stochastic_rounding_needs_a_seed_and_follows_it() -> None:
    chain = plan(Step("int8", {"rounding": "stochastic"}))
    with pytest.raises(ValueError, match="seed must be given"):
        encode(lora_update(), chain)
    one, two, other = (encode(lora_update(), chain, seed=s).payload for s in (1, 1, 2))
    assert one == two != other


def test_stochastic_rounding_draws_anew_for_each_frame() -> None:
    frame = torch.full((262_144,), 0.3)
    frame[::256] = 127.0
    chain = plan(Step("int8", {"rounding": "stochastic"}))
    payload = encode({"w": frame.repeat(2, 1)}, chain, seed=0).payload
    received = decode(payload, {"w": TensorSpec((2, 262_144), "float32")}, [chain])
    assert not torch.equal(*received["w"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**41])
def test_values_that_must_not_travel_are_refused_with_the_tensors_name(bad: float) -> None:
    tensors = lora_update()
    name = sorted(tensors)[7]
    tensors[name][3, 3] = bad
    for chain in CHAINS:
        with pytest.raises(ValueError, match=name):
            encode(tensors, chain, seed=0)


def test_dtypes_outside_the_format_are_refused() -> None:
    with pytest.raises(ValueError, match="it must be one of float32"):
        encode({"ids": torch.zeros(3, dtype=torch.int64)}, INT8)


def test_a_payload_may_come_in_small_pieces_and_go_out_in_them() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size if size is None or size < 0 else min(size, 1000))

    tensors, out = lora_update(), io.BytesIO()
    encode_to(out, tensors, FLOAT32)
    received = decode_from(Slow(out.getvalue()), spec_of(tensors), [FLOAT32])
    assert worst_error(tensors, received) == 0.0


def test_a_payload_over_the_receivers_limit_is_refused() -> None:
    tensors = lora_update()
    payload = encode(tensors, INT8).payload
    decode(payload, spec_of(tensors), [INT8], max_payload_bytes=len(payload))
    with pytest.raises(WireError, match="more than"):
        decode(payload, spec_of(tensors), [INT8], max_payload_bytes=len(payload) - 1)


def test_the_senders_tensors_are_left_alone() -> None:
    tensors = large()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for chain in CHAINS:
        encode(tensors, chain, seed=0)
    assert all(torch.equal(before[name], tensors[name]) for name in tensors)


def test_feedback_sends_later_what_was_lost_before() -> None:
    chain = plan(Step("top_k", {"keep_ratio": 0.1}), Step("int8"))
    update = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    spec, received, residual = spec_of(update), torch.zeros(1000), None
    for _ in range(20):
        sent, residual = encode_with_feedback(update, residual, chain)
        received += decode(sent.payload, spec, [chain])["w"]
    # What has arrived and what is still owed make up all that was given, up to float32 rounding.
    torch.testing.assert_close(received + residual["w"], 20 * update["w"], rtol=1e-5, atol=1e-4)
    assert float(residual["w"].norm()) < 0.7 * 20 * float(update["w"].norm())


def test_feedback_refuses_a_residual_of_other_tensors() -> None:
    with pytest.raises(ValueError, match="residual"):
        encode_with_feedback({"w": torch.ones(3)}, {"v": torch.ones(3)}, INT8)


def test_feedback_refuses_tensors_that_are_coarser_than_its_residual() -> None:
    with pytest.raises(ValueError, match="feedback needs float32"):
        encode_with_feedback({"w": torch.ones(3, dtype=torch.bfloat16)}, None, INT8)


def test_scalars_count_one_value() -> None:
    assert TensorSpec((), "float32").num_values == 1
    assert TensorSpec((3, 0), "float32").num_values == 0
