"""Which blocks stay."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedot.emulator.selection import kept_blocks, uniform_keep
from fedot.errors import ConfigError

sizes = st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@pytest.mark.parametrize(
    ("num_middle", "num_kept", "kept"),
    [
        (1, 1, (0,)),
        (4, 1, (1,)),
        (5, 1, (2,)),
        (4, 2, (0, 3)),
        (5, 3, (0, 2, 4)),
        (7, 4, (0, 2, 4, 6)),
        (20, 8, (0, 3, 5, 8, 11, 14, 16, 19)),
        (4, 4, (0, 1, 2, 3)),
    ],
)
def test_cases_worked_by_hand(num_middle, num_kept, kept):
    assert uniform_keep(num_middle, num_kept) == kept


@given(sizes)
def test_positions_are_as_many_as_asked_ascending_and_evenly_spread(size):
    num_middle, num_kept = size
    kept = uniform_keep(num_middle, num_kept)
    assert len(kept) == num_kept
    assert all(0 <= i < num_middle for i in kept)
    gaps = [b - a for a, b in pairwise(kept)]
    assert all(gap >= 1 for gap in gaps)
    # Rounding moves either end of a gap by half a position at most.
    assert not gaps or max(gaps) - min(gaps) <= 2
    if num_kept > 1:
        assert (kept[0], kept[-1]) == (0, num_middle - 1)


@pytest.mark.parametrize(("num_middle", "num_kept"), [(4, 0), (4, 5), (0, 0), (0, 1), (4, -1)])
def test_impossible_numbers_are_refused(num_middle, num_kept):
    with pytest.raises(ValueError, match="num_kept"):
        uniform_keep(num_middle, num_kept)


def test_both_ends_stay_and_part_of_the_middle():
    assert kept_blocks(6, 1, 0.5) == (0, 1, 4, 5)
    assert kept_blocks(6, 2, 0.5) == (0, 1, 2, 4, 5)
    assert kept_blocks(24, 2, 0.4) == (0, 1, 2, 5, 7, 10, 13, 16, 18, 21, 22, 23)


@given(st.integers(3, 100), st.data())
def test_keeping_everything_keeps_everything(num_blocks, data):
    ends = data.draw(st.integers(1, (num_blocks - 1) // 2))
    assert kept_blocks(num_blocks, ends, 1.0) == tuple(range(num_blocks))


@given(st.integers(3, 100), st.data())
def test_kept_blocks_ascend_and_hold_both_ends(num_blocks, data):
    ends = data.draw(st.integers(1, (num_blocks - 1) // 2))
    ratio = data.draw(st.floats(0.6 / (num_blocks - 2 * ends), 1.0))
    kept = kept_blocks(num_blocks, ends, ratio)
    assert list(kept) == sorted(set(kept))
    assert set(kept) >= {*range(ends), *range(num_blocks - ends, num_blocks)}
    assert len(kept) == 2 * ends + round(ratio * (num_blocks - 2 * ends))


@pytest.mark.parametrize(
    ("num_blocks", "ends", "ratio", "words"),
    [
        (2, 1, 1.0, "num_end_blocks is 1; of 2 blocks that leaves no middle"),
        (4, 2, 0.5, "below 2"),
        (3, 2, 0.5, r"below 1\.5"),
        (6, 1, 0.1, r"keep_ratio is 0\.1; of 4 middle blocks that leaves none"),
        (6, 1, 0.125, "leaves none"),  # 0.5 rounds to even: none
    ],
)
def test_emulator_without_a_middle_is_refused(num_blocks, ends, ratio, words):
    with pytest.raises(ConfigError, match=words):
        kept_blocks(num_blocks, ends, ratio)


@given(st.integers(3, 200), st.data())
def test_smallest_ratio_that_a_refusal_names_is_enough(num_blocks, data):
    ends = data.draw(st.integers(1, (num_blocks - 1) // 2))
    with pytest.raises(ConfigError) as caught:
        kept_blocks(num_blocks, ends, 0.4 / (num_blocks - 2 * ends))
    named = float(str(caught.value).split("at least ")[1].rstrip("."))
    kept_blocks(num_blocks, ends, named)
