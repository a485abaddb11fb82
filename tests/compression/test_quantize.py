"""Value operators: cases by hand, edges, unbiasedness, and bitsandbytes as reference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedot.compression.frames import dither_for
from fedot.compression.quantize import MAX_SENT, VALUES, bfloat16_bits, largest_size

Floats = npt.NDArray[np.float32]
PARAMS: dict[str, dict[str, int | float | str]] = {
    "float32": {},
    "bfloat16": {},
    "float16": {"block": 256},
    "int8": {"block": 256, "min_step": 0.0, "rounding": "nearest"},
    "nf4": {"block": 64},
}


def there_and_back(name: str, values: Floats, **params: float | str) -> Floats:
    operator, full = VALUES[name], PARAMS[name] | params
    scales, codes = operator.encode(values, full, dither_for(0, 0))
    assert scales.size == operator.num_scales(values.size, full)
    assert codes.size == operator.code_bytes(values.size)
    out = np.full_like(values, np.nan)
    operator.decode(scales, codes, full, out)
    return out


def normal(num_values: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(num_values, dtype=np.float32)


def test_int8_by_hand() -> None:
    values = np.zeros(128, dtype=np.float32)
    values[:5] = [127.0, -127.0, 0.4, 0.6, 2.5]
    values[64:67] = [0.0, -0.0635, 0.127]
    scales, codes = VALUES["int8"].encode(
        values, PARAMS["int8"] | {"block": 64}, dither_for(None, 0)
    )
    np.testing.assert_allclose(scales, [1.0, 0.001], rtol=1e-6)
    # 2.5 goes to the even neighbour.
    assert codes.view(np.int8)[:5].tolist() == [127, -127, 0, 1, 2]
    assert codes.view(np.int8)[64:67].tolist() == [0, -64, 127]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("num_values", [1, 2, 63, 64, 65, 255, 256, 257, 1000])
def test_any_number_of_values_comes_back(name: str, num_values: int) -> None:
    values = normal(num_values)
    # NF4's widest gap is 0.304 of the block's largest value; the others are far finer.
    limit = 0.153 * largest_size(values) if name == "nf4" else 0.02
    assert largest_size(there_and_back(name, values) - values) <= limit


@pytest.mark.parametrize("name", VALUES)
def test_zeros_stay_zeros(name: str) -> None:
    assert not there_and_back(name, np.zeros(300, dtype=np.float32)).any()


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1.2e-38, MAX_SENT])
def test_the_smallest_and_largest_values_neither_overflow_nor_raise(name: str, size: float) -> None:
    values = np.full(100, size, dtype=np.float32)
    values[::2] = -values[::2]
    received = there_and_back(name, values)
    # Below the smallest normal float32 the absolute error is bounded, not the relative one.
    np.testing.assert_allclose(received, values, rtol=2**-7, atol=2.0**-126)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, MAX_SENT * 1.001])
def test_what_may_not_be_sent_is_refused(name: str, bad: float) -> None:
    values = np.zeros(300, dtype=np.float32)
    values[299] = bad
    with pytest.raises(OverflowError):
        VALUES[name].encode(values, PARAMS[name], dither_for(0, 0))


def test_bfloat16_rounds_as_torch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 1e38)]
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(bfloat16_bits(values), expected)


def test_scaled_float16_keeps_values_that_plain_float16_loses() -> None:
    values = normal(4096) * np.float32(1e-7)
    plain = values.astype(np.float16).astype(np.float32)
    scaled = there_and_back("float16", values)

    def error(received: Floats) -> float:
        return float(np.linalg.norm(received - values) / np.linalg.norm(values))

    assert error(plain) > 0.1
    # Eleven significant bits, rounded to nearest.
    assert error(scaled) < 2**-12


def test_int8_rounding_is_within_half_a_step_and_a_smaller_block_is_finer() -> None:
    values = normal(100_000)
    errors = []
    for block in (64, 256, 4096):
        received = there_and_back("int8", values, block=block)
        errors.append(float(np.linalg.norm(received - values)))
        assert largest_size(received - values) <= 1.0001 * largest_size(values) / 254
    assert errors == sorted(errors)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_min_step_makes_the_error_the_same_whatever_the_distribution(distribution: str) -> None:
    rng = np.random.default_rng(0)
    values = getattr(rng, distribution)(
        *((-1, 1) if distribution == "uniform" else (0, 1)), 100_000
    )
    values = values.astype(np.float32)
    received = there_and_back("int8", values, min_step=0.04)
    # A step's rounding error has the variance step^2 / 12; 2 % for the finite sample.
    error = float(np.linalg.norm(received - values) / np.linalg.norm(values))
    assert error == pytest.approx(0.04 / 12**0.5, rel=0.02)


def test_min_step_never_lets_a_code_overflow() -> None:
    values = np.zeros(256, dtype=np.float32)
    values[5] = -3.0
    # The largest value alone: 127 steps of it are coarser than min_step asks for.
    assert there_and_back("int8", values, min_step=0.1)[5] == pytest.approx(-3.0, rel=1e-6)


def test_stochastic_rounding_has_the_right_mean_and_nearest_has_not() -> None:
    # One value of 0.3 of a step beside the block's largest: nearest always gives 0.
    values = np.tile(np.array([127.0] + [0.3] * 63, dtype=np.float32), 4096)
    small = np.tile(np.array([False] + [True] * 63), 4096)
    nearest = there_and_back("int8", values, block=64)
    stochastic = there_and_back("int8", values, block=64, rounding="stochastic")
    assert not nearest[small].any()
    # 258,048 draws of variance 0.21: five standard errors, false alarm below 1e-6; seed fixed.
    assert abs(float(stochastic[small].mean(dtype=np.float64)) - 0.3) < 5 * (0.21 / 258_048) ** 0.5
    assert (stochastic[~small] == 127.0).all()


def test_stochastic_rounding_never_steps_over_the_largest_code() -> None:
    # Scaling may lift a block's largest value a little above 127: every significand is tried, with
    # the most that is ever added to it.
    values = (np.arange(2**23, dtype=np.uint32) | np.uint32(127 << 23)).view(np.float32)
    params = PARAMS["int8"] | {"block": 1, "rounding": "stochastic"}
    most = np.float32(1 - 2**-16)
    _, codes = VALUES["int8"].encode(values, params, lambda n: np.full(n, most, dtype=np.float32))
    assert bool((codes == 127).all())
    _, codes = VALUES["int8"].encode(-values, params, lambda n: np.zeros(n, dtype=np.float32))
    assert set(np.unique(codes.view(np.int8)).tolist()) <= {-127, -128}


def test_dither_is_uniform_and_differs_between_frames() -> None:
    one, other = dither_for(7, 0)(100_000), dither_for(7, 1)(100_000)
    assert one.min() >= 0.0
    assert one.max() < 1.0
    # Five standard errors of a uniform mean over 100,000 draws.
    assert abs(float(one.mean()) - 0.5) < 5 * (1 / 12 / 100_000) ** 0.5
    assert abs(float(np.corrcoef(one, other)[0, 1])) < 5 / 100_000**0.5


@pytest.mark.parametrize("block", [64, 128, 4096])
@pytest.mark.parametrize("num_values", [1, 65, 10_000])
def test_nf4_decodes_as_bitsandbytes_does(block: int, num_values: int) -> None:
    from bitsandbytes import functional

    values = normal(num_values)
    packed, state = functional.quantize_4bit(
        torch.from_numpy(values), blocksize=block, compress_statistics=False, quant_type="nf4"
    )
    expected = functional.dequantize_4bit(packed, state).flatten().numpy()
    np.testing.assert_array_equal(there_and_back("nf4", values, block=block), expected)


def test_largest_size_sees_nan_and_minus_infinity_and_nothing() -> None:
    assert largest_size(np.array([1.0, -3.0], dtype=np.float32)) == 3.0
    assert np.isnan(largest_size(np.array([1.0, np.nan, -np.inf], dtype=np.float32)))
    assert largest_size(np.array([1.0, -np.inf], dtype=np.float32)) == np.inf
    assert largest_size(np.empty(0, dtype=np.float32)) == 0.0
