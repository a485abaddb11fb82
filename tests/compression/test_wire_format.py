"""The format does not drift: stored bytes stay readable, by two readers that share no code."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedot.compression.chain import OPERATORS
from fedot.compression.codec import Chain, Step, decode, encode, plan, spec_of, text_of


def second_reader() -> Any:
    path = Path(__file__).with_name("reader.py")
    spec = importlib.util.spec_from_file_location("reader", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors() -> dict[str, Tensor]:
    """Two frames; values by arithmetic, so that no generator's version matters."""
    ramp = (torch.arange(262_300) * 7919 % 2003 - 1001).float() / 2**12
    return {
        "b.weight": ramp[:262_200].reshape(100, 2622),
        "a.weight": ramp[262_200:].reshape(4, 25).bfloat16(),
        "é.bias": torch.tensor([0.0, -0.25, 1.5], dtype=torch.float16),
        "empty": torch.empty(2, 0),
    }


CHAINS = [
    plan(Step("float32")),
    plan(Step("bfloat16"), Step("planes"), Step("deflate")),
    plan(Step("float16", {"block": 100}), Step("planes"), Step("zstd")),
    plan(Step("int8"), Step("gzip")),
    plan(Step("nf4"), Step("deflate")),
    plan(Step("top_k", {"keep_ratio": 0.03}), Step("int8"), Step("deflate")),
    plan(Step("top_k", {"keep_ratio": 0.5}), Step("float32"), Step("planes"), Step("zstd")),
    plan(Step("top_k", {"keep_ratio": 0.001}), Step("nf4")),
]


@pytest.mark.parametrize("chain", CHAINS, ids=text_of)
def test_two_readers_that_share_no_code_agree_bit_for_bit(chain: Chain) -> None:
    sent = tensors() | {"a.weight": tensors()["a.weight"].float()}
    sent["é.bias"] = sent["é.bias"].float()
    payload = encode(sent, chain).payload
    ours = decode(payload, spec_of(sent), [chain])
    theirs = second_reader().read(
        payload, {name: (one.dtype, list(one.shape)) for name, one in spec_of(sent).items()}
    )
    assert sorted(theirs) == sorted(ours)
    assert all(ours[name].flatten().tolist() == theirs[name] for name in ours)


# Payloads of these tensors, by the text of their chain: written once and never rewritten. A change
# that cannot read them needs a new format version.
SMALL = {
    "w": torch.tensor([[1.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0]]).repeat(8, 1),
    "a": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
}
GOLDEN: dict[str, str] = json.loads(Path(__file__).with_name("golden.json").read_text())


def planned(text: str) -> Chain:
    """The chain of a golden payload, from the second reader's words."""

    def value(word: str) -> int | float | str:
        number = float(word) if word.replace(".", "").isdigit() else word
        return int(number) if isinstance(number, float) and "." not in word else number

    steps = second_reader().steps(text).items()
    return plan(*(Step(name, {k: value(w) for k, w in p.items()}) for name, p in steps))


def test_the_golden_payloads_cover_every_operator() -> None:
    assert {step.name for text in GOLDEN for step in planned(text)} == set(OPERATORS)


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_bytes_decode_as_ever(text: str) -> None:
    payload, chain, spec = bytes.fromhex(GOLDEN[text]), planned(text), spec_of(SMALL)
    received = decode(payload, spec, [chain])
    fresh = decode(encode(SMALL, chain, seed=0).payload, spec, [chain])
    theirs = second_reader().read(payload, {n: (s.dtype, list(s.shape)) for n, s in spec.items()})
    assert all(torch.equal(received[name], fresh[name]) for name in SMALL)
    assert received["w"].flatten().tolist() == theirs["w"]


@pytest.mark.parametrize("text", [t for t in GOLDEN if not t.endswith("level=1)")])
def test_without_a_coder_even_the_bytes_that_are_written_never_change(text: str) -> None:
    assert encode(SMALL, planned(text), seed=0).payload.hex() == GOLDEN[text]
