"""Seeds: one in the config, independent ones for every use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedot.seeds import derive_seed

seeds = st.integers(0, 2**32 - 1)


def test_values_never_change():
    # The first four bytes of sha256(b"0/order/client-0/1") and sha256(b"7/split/email"), by
    # `sha256sum`: another value would make saved runs unrepeatable.
    assert derive_seed(0, "order", "client-0", 1) == 0x22E673D8
    assert derive_seed(7, "split", "email") == 0x100EA82D


@given(seeds, st.text(), st.integers())
def test_seed_fits_what_torch_keeps(seed, label, number):
    assert 0 <= derive_seed(seed, label, number) < 2**32


@given(seeds)
def test_a_number_and_its_digits_are_one_label(seed):
    assert derive_seed(seed, "round", 1) == derive_seed(seed, "round", "1")


def test_uses_seeds_and_rounds_all_differ():
    # 3,000 draws of 32 bits: a chance collision has probability 3000^2 / 2 / 2^32 = 0.001, and the
    # values are fixed, so this either always holds or never.
    derived = {
        derive_seed(seed, use, round)
        for seed in range(10)
        for use in ("order", "cohort", "split")
        for round in range(100)
    }
    assert len(derived) == 3000
