"""Bounds on an update's values: no chain carries what a site may send past what is counted."""

from __future__ import annotations

import math

import pytest
import torch

from fedot.client.bounds import LARGEST_COUNTED, LARGEST_SENT, are_within
from fedot.compression.chain import chain_of
from fedot.compression.codec import decode, encode, spec_of

CHAINS = (
    "float32",
    "bfloat16+planes+deflate",
    "float16",
    "int8",
    "int8(rounding=stochastic)",
    "int8(min_step=0.1,rounding=stochastic)",
    "nf4",
    "top_k(keep_ratio=0.1)+int8(rounding=stochastic)",
)


@pytest.mark.parametrize("text", CHAINS)
def test_what_a_site_may_send_is_counted_whatever_the_chain_rounds(text: str) -> None:
    values = torch.empty(4096).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    values[::7] = 1.0
    update = {"w": values * LARGEST_SENT}
    assert are_within(update.values(), LARGEST_SENT)
    chain = chain_of(text)
    for seed in range(5):
        payload = encode(update, chain, seed=seed).payload
        arrived = decode(payload, spec_of(update), allowed=[chain])
        assert are_within(arrived.values(), LARGEST_COUNTED)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 2.0, -2.0])
def test_one_odd_value_is_seen(odd: float) -> None:
    assert are_within([torch.ones(3), -torch.ones(3)], 1.0)
    assert not are_within([torch.ones(3), torch.tensor([0.0, odd])], 1.0)
