"""Planning chains: what is filled in, what is refused, and with which reason."""

from __future__ import annotations

import re

import pytest

from fedot.compression.chain import Step, chain_of, plan, short_text, text_of
from fedot.errors import ConfigError


def test_left_out_parameters_are_filled_in_and_make_equal_chains() -> None:
    short = plan(Step("top_k"), Step("int8"), Step("deflate"))
    full = plan(
        Step("top_k", {"keep_ratio": 0.1}),
        Step("int8", {"rounding": "nearest", "min_step": 0.032, "block": 256}),
        Step("deflate", {"level": 1}),
    )
    assert short == full
    assert hash(short) == hash(full)
    text = "top_k(keep_ratio=0.1)+int8(block=256,min_step=0.032,rounding=nearest)+deflate(level=1)"
    assert text_of(short) == text
    assert plan(*short) == short


def test_a_whole_keep_ratio_is_the_same_number() -> None:
    assert plan(Step("top_k", {"keep_ratio": 1}), Step("float32")) == plan(
        Step("top_k", {"keep_ratio": 1.0}), Step("float32")
    )


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((), "does not say how values travel"),
        ((Step("deflate"),), "does not say how values travel"),
        ((Step("top_k"),), "does not say how values travel"),
        ((Step("int8"), Step("bfloat16")), "both int8 and bfloat16"),
        ((Step("float32"), Step("deflate"), Step("zstd")), "both deflate and zstd"),
        ((Step("deflate"), Step("int8")), "int8 stands after deflate"),
        ((Step("int8"), Step("top_k")), "top_k stands after int8"),
        ((Step("float32"), Step("zstd"), Step("planes")), "planes stands after zstd"),
        ((Step("int8"), Step("planes"), Step("zstd")), "a value of int8 has one byte"),
        ((Step("nf4"), Step("planes"), Step("zstd")), "a value of nf4 has one byte"),
        ((Step("bfloat16"), Step("planes")), "needs deflate, gzip or zstd"),
        ((Step("int4"),), "no operator 'int4'"),
        (
            (Step("int8", {"blocks": 64}),),
            "no parameter 'blocks'; it takes: block, min_step",
        ),
        ((Step("float32", {"block": 64}),), "it takes: none"),
        ((Step("int8", {"block": 63}),), "int8.block is 63; it must be a whole number from 64"),
        ((Step("int8", {"block": 4097}),), "int8.block is 4097"),
        ((Step("int8", {"block": 256.0}),), "int8.block is 256.0"),
        ((Step("int8", {"block": True}),), "int8.block is True"),
        ((Step("int8", {"min_step": 0.11}),), "at least 0 and at most 0.1"),
        ((Step("int8", {"min_step": -0.01}),), "at least 0 and at most 0.1"),
        ((Step("int8", {"rounding": "up"}),), "it must be nearest or stochastic"),
        ((Step("nf4", {"block": 100}),), "a power of two"),
        ((Step("top_k", {"keep_ratio": 0}), Step("float32")), "above 0 and at most 1"),
        ((Step("top_k", {"keep_ratio": 1.1}), Step("float32")), "above 0 and at most 1"),
        ((Step("top_k", {"keep_ratio": float("nan")}), Step("float32")), "above 0"),
        ((Step("int8"), Step("deflate", {"level": 0})), "deflate.level is 0"),
        ((Step("int8"), Step("zstd", {"level": 20})), "zstd.level is 20"),
    ],
)
def test_what_makes_no_chain_is_refused_with_the_reason(
    steps: tuple[Step, ...], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        plan(*steps)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("int8+deflate", "int8(block=256,min_step=0.032,rounding=nearest)+deflate(level=1)"),
        ("float32", "float32"),
        (
            "top_k(keep_ratio=0.05)+int8(block=512,rounding=stochastic)+zstd(level=3)",
            "top_k(keep_ratio=0.05)+int8(block=512,min_step=0.032,rounding=stochastic)"
            "+zstd(level=3)",
        ),
        ("top_k+nf4(block=128)", "top_k(keep_ratio=0.1)+nf4(block=128)"),
        ("bfloat16+planes+gzip", "bfloat16+planes+gzip(level=1)"),
        ("int8(min_step=1e-05)", "int8(block=256,min_step=1e-05,rounding=nearest)"),
    ],
)
def test_a_written_chain_is_read_and_written_back(short: str, full: str) -> None:
    chain = chain_of(short)
    assert (text_of(chain), short_text(chain)) == (full, short)
    assert chain_of(full) == chain


def test_blanks_and_an_exponent_with_a_plus_are_read() -> None:
    chain = chain_of(
        " top_k( keep_ratio=1e+0 ) + float32 + deflate( level = 2 ) ".replace(" = ", "=")
    )
    assert text_of(chain) == "top_k(keep_ratio=1.0)+float32+deflate(level=2)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is no step of a chain"),
        ("int8+", "'' is no step"),
        ("int8 deflate", "'int8 deflate' is no step"),
        ("int8(", "is no step"),
        ("int8)", "is no step"),
        ("int8((block=64))", "is no step"),
        ("int8(block)", "is no step"),
        ("int8(block=64,)", "is no step"),
        ("int8(block=64,block=128)", "is no step"),
        ("int8(block=)", "is no step"),
        ("int8(block=64)x", "is no step"),
        ("int4", "no operator 'int4'"),
        ("int8(block=64.0)", "int8.block is 64.0"),
        ("int8(block=many)", "int8.block is 'many'"),
        ("top_k(keep_ratio=nan)+int8", "top_k.keep_ratio is nan"),
        ("deflate+int8", "int8 stands after deflate"),
    ],
)
def test_text_that_names_no_chain_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        chain_of(text)
