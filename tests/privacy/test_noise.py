from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from fedot.privacy import noise
from fedot.privacy.noise import KEY_BYTES, NoiseSource


def keyed(number: int) -> NoiseSource:
    return NoiseSource(number.to_bytes(KEY_BYTES, "little"))


def test_keystream_is_aes_256_in_counter_mode() -> None:
    # NIST SP 800-38A, F.5.5, with the counter that the standard starts from left out: the first
    # block of CTR with counter 0 is AES(key, 0), which for the all-zero key is this known answer.
    first = NoiseSource(bytes(KEY_BYTES))._keystream.update(bytes(16))
    assert first.hex() == "dc95c078a2408989ad48a21492842087"


def test_numbers_never_repeat_within_a_source() -> None:
    source = keyed(1)
    assert len(np.unique(np.concatenate([source.uniform(5000), source.uniform(5000)]))) == 10_000


def test_sources_from_the_os_differ() -> None:
    assert NoiseSource.from_os().uniform(4).tolist() != NoiseSource.from_os().uniform(4).tolist()


def test_keys_that_differ_above_bit_32_give_other_noise() -> None:
    # A torch.Generator on the CPU keeps 32 bits of its seed and would fail this.
    assert keyed(5).normal(8).tolist() != keyed(5 + 2**40).normal(8).tolist()


@pytest.mark.parametrize("num", [0, 1, 2, 7])
def test_normal_gives_as_many_numbers_as_asked(num: int) -> None:
    assert keyed(2).normal(num).shape == (num,)


def test_normals_are_standard_normal() -> None:
    # Fixed key; over keys this test fails by chance once in 1,000.
    assert stats.kstest(keyed(3).normal(200_000), "norm").pvalue > 1e-3


def test_normals_are_finite_also_where_uniform_is_zero() -> None:
    class ZeroStream(NoiseSource):
        def uniform(self, num: int) -> np.ndarray:
            return np.zeros(num)

    assert np.isfinite(ZeroStream(bytes(KEY_BYTES)).normal(4)).all()


def test_uniform_stays_below_one_and_is_uniform() -> None:
    drawn = keyed(4).uniform(100_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3


def test_wrong_key_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        NoiseSource(b"short")


def test_product_code_never_gives_a_key() -> None:
    """Only `from_os` may make a source; a key in product code would be a seed."""
    found = subprocess.run(
        ["grep", "-rnE", r"NoiseSource\((?!\))", "-P", "--include=*.py", "fedot", "privacy"],
        capture_output=True,
        text=True,
        check=False,
        cwd=str(__import__("pathlib").Path(__file__).parents[2]),
    )
    calls = [line for line in found.stdout.splitlines() if "class NoiseSource" not in line]
    assert calls == [], sys.version


@pytest.mark.parametrize("num", [10, 2**16, 3 * 2**16 + 7])
def test_numbers_drawn_ahead_are_those_that_would_have_come(num: int) -> None:
    ahead, plain = keyed(9), keyed(9)
    ahead.draw_ahead(num)
    first = [ahead.normal(min(2**16, num - start)) for start in range(0, num, 2**16)]
    assert np.concatenate(first).tolist() == plain.normal(num).tolist()
    assert ahead.normal(3).tolist() == plain.normal(3).tolist()


def test_more_than_is_drawn_ahead_goes_on_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_MOST_AHEAD", 2**16)
    ahead, plain = keyed(9), keyed(9)
    ahead.draw_ahead(2**17)
    assert ahead.normal(2**17).tolist() == plain.normal(2**17).tolist()


def test_nothing_else_is_drawn_while_normals_are_drawn_ahead() -> None:
    source = keyed(9)
    source.draw_ahead(2**16)
    with pytest.raises(ValueError, match="take them first"):
        source.uniform(1)
    with pytest.raises(ValueError, match="take them first"):
        source.draw_ahead(2**16)


def test_numbers_of_one_step_are_not_those_of_the_next() -> None:
    ahead, plain = keyed(9), keyed(9)
    for num in (2**16 + 1, 3 * 2**16, 2**16):
        ahead.draw_ahead(num)
        assert ahead.normal(num).tolist() == plain.normal(num).tolist()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_old_numbers_are_never_given_out_when_drawing_ahead_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = keyed(9)
    source.draw_ahead(2**16)
    source.normal(2**16)
    monkeypatch.setattr(torch, "cos", lambda *_, **__: 1 / 0)
    source.draw_ahead(2**16)
    with pytest.raises(RuntimeError, match="did not come to its end"):
        source.normal(2**16)
