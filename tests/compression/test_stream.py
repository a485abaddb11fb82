"""Property tests over shapes, dtypes and strides, and the stream's own edges."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedot.compression.codec import Chain, Step, decode, encode, encode_to, plan, spec_of
from fedot.compression.stream import _in_order

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CODERS = [(), (Step("deflate"),), (Step("gzip", {"level": 3}),), (Step("zstd"),)]
# What a chain may add to a value: nothing, or parts of the largest value of its block.
LIMITS = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 0.032}


@st.composite
def chains(draw: Any) -> Chain:
    steps = [Step("top_k", {"keep_ratio": draw(st.floats(0.001, 1.0))})]
    steps = steps if draw(st.booleans()) else []
    block = {"block": draw(st.integers(64, 4096))}
    rounding = {"rounding": draw(st.sampled_from(["nearest", "stochastic"]))}
    floats = [Step("float32"), Step("bfloat16"), Step("float16", block)]
    value = draw(st.sampled_from([*floats, Step("int8", block | rounding)]))
    coder = draw(st.sampled_from(CODERS))
    planes = [Step("planes")] if coder and value.name != "int8" and draw(st.booleans()) else []
    return plan(*steps, value, *planes, *coder)


@st.composite
def tensor_sets(draw: Any) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    result = {}
    for name in draw(st.sets(st.text(max_size=8), max_size=5)):
        shape = draw(st.lists(st.integers(0, 12), max_size=4))
        scale = 10.0 ** draw(st.integers(-12, 3))
        tensor = (scale * torch.randn(shape, generator=rng)).to(draw(st.sampled_from(DTYPES)))
        if tensor.dim() > 1 and draw(st.booleans()):
            tensor = tensor.transpose(0, -1)
        if tensor.dim() and draw(st.booleans()):
            tensor = tensor[::2]
        result[name] = tensor
    return result


@settings(max_examples=150, deadline=None)
@given(tensors=tensor_sets(), chain=chains(), seed=st.integers(0, 2**64))
def test_round_trips_over_shapes_dtypes_and_strides(
    tensors: dict[str, Tensor], chain: Chain, seed: int
) -> None:
    payload = encode(tensors, chain, seed=seed).payload
    received = decode(payload, spec_of(tensors), [chain])
    assert spec_of(received) == spec_of(tensors)
    top = max((float(t.abs().max()) for t in tensors.values() if t.numel()), default=0.0)
    limit = next(LIMITS[step.name] for step in chain if step.name in LIMITS)
    for name, sent in tensors.items():
        gap = (sent.float() - received[name].float()).abs().flatten()
        if chain[0].name == "top_k":
            # What was not kept is zero.
            gap = torch.minimum(gap, received[name].float().abs().flatten())
        # Rounding to the tensor's own dtype comes on top; bfloat16 has the widest steps.
        own = 2**-8 if limit and sent.dtype != torch.float32 else 0.0
        assert gap.numel() == 0 or float(gap.max()) <= (limit + own) * 1.001 * top + 2**-24


@settings(max_examples=50, deadline=None)
@given(tensors=tensor_sets(), keep=st.floats(0.01, 1.0))
def test_sparse_payloads_hold_as_many_values_as_was_asked(
    tensors: dict[str, Tensor], keep: float
) -> None:
    tensors = {name: torch.rand(tensor.shape) + 1 for name, tensor in tensors.items()}
    chain = plan(Step("top_k", {"keep_ratio": keep}), Step("float32"))
    received = decode(encode(tensors, chain).payload, spec_of(tensors), [chain])
    total = sum(tensor.numel() for tensor in tensors.values())
    kept = sum(int(tensor.count_nonzero()) for tensor in received.values())
    assert kept == (max(1, int(keep * total + 0.5)) if total else 0)


def test_results_come_in_order_and_few_items_are_taken_ahead() -> None:
    taken, most = 0, 0
    done = threading.Semaphore(0)

    def items() -> Any:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number

    def slow_when_even(number: int) -> int:
        if number % 2:
            done.release()
        else:
            done.acquire(timeout=1)
        return number

    results = []
    for result in _in_order(slow_when_even, items(), 3):
        results.append(result)
        most = max(most, taken - len(results))
    assert results == list(range(50))
    assert most <= 2 * 3


def test_an_error_while_writing_ends_the_threads() -> None:
    class Full:
        def write(self, data: bytes | memoryview, /) -> None:
            raise OSError("no space left")

    before = threading.active_count()
    with pytest.raises(OSError, match="no space"):
        encode_to(Full(), {"w": torch.ones(2_000_000)}, plan(Step("int8")), workers=4)
    assert threading.active_count() == before


def test_workers_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="workers is 0"):
        encode({"w": torch.ones(3)}, plan(Step("int8")), workers=0)
