"""`chain: auto`."""

from __future__ import annotations

import pytest
import torch

from fedot.compression.chain import Step, plan, short_text
from fedot.compression.codec import encode
from fedot.compression.speed import STATE_CHAINS, UPDATE_CHAINS, Measured, choose, measure
from fedot.errors import ConfigError

PLAIN, SMALL = plan(Step("bfloat16")), plan(Step("int8"), Step("deflate"))
MEASURED = [Measured(PLAIN, 4e9, 4e9, 0.5), Measured(SMALL, 1e9, 1e9, 0.2)]


def test_a_slow_link_gets_the_small_chain_and_a_fast_one_the_fast_chain() -> None:
    assert choose(MEASURED, 1e6).chain == SMALL
    assert choose(MEASURED, 1e10).chain == PLAIN


def test_the_choice_turns_where_the_seconds_by_hand_are_equal() -> None:
    # 0.25 + 0.25 + 0.5/b = 1 + 1 + 0.2/b in GB/s: b = 0.2.
    assert MEASURED[0].seconds(1e9, 0.2e9) == pytest.approx(3.0)
    assert MEASURED[1].seconds(1e9, 0.2e9) == pytest.approx(3.0)
    assert choose(MEASURED, 0.201e9).chain == PLAIN
    assert choose(MEASURED, 0.199e9).chain == SMALL


def test_the_choice_is_reported_with_what_it_was_weighed_against() -> None:
    reason = choose(MEASURED, 125e6).reason
    assert "125 MB/s" in reason
    assert all(short_text(one.chain) in reason for one in MEASURED)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan")])
def test_no_bandwidth_no_choice(bandwidth: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        choose(MEASURED, bandwidth)
    with pytest.raises(ConfigError, match="0 chains"):
        choose([], 1e6)


def test_what_is_measured_is_what_the_codec_does() -> None:
    sample = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    for one in measure(UPDATE_CHAINS, sample):
        payload = encode({"sample": sample}, one.chain).payload
        assert one.sent_ratio == len(payload) / 40_000
        assert one.encode_bytes_per_s > 0
        assert one.decode_bytes_per_s > 0


def test_chains_for_state_lose_no_more_than_sixteen_bits_do() -> None:
    names = {step.name for chain in STATE_CHAINS for step in chain}
    assert names.isdisjoint({"int8", "nf4", "top_k"})
