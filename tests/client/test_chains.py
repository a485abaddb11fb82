"""From a config's payload section to the chains of both directions."""

from __future__ import annotations

import pytest

from fedot.client.chains import feeds_back, state_chain, update_chain
from fedot.compression.codec import text_of
from fedot.config import PayloadConfig


def test_defaults_are_int8_in_blocks_of_256_and_deflate() -> None:
    payload = PayloadConfig()
    text = "int8(block=256,min_step=0.032,rounding=nearest)+deflate(level=1)"
    assert text_of(update_chain(payload)) == text
    assert text_of(state_chain(payload)) == "float32+deflate(level=1)"
    assert not feeds_back(payload)


@pytest.mark.parametrize(
    ("chain", "asked", "fed_back"),
    [
        ("top_k+int8", None, True),
        ("top_k+int8", False, False),
        ("int8", None, False),
        ("int8", True, True),
        ("nf4+deflate", None, False),
    ],
)
def test_feedback_is_on_with_top_k_unless_the_config_says_otherwise(
    chain: str, asked: bool | None, fed_back: bool
) -> None:
    assert feeds_back(PayloadConfig(chain=chain, error_feedback=asked)) is fed_back
