"""Mean and trimmed mean: worked by hand, robust within their promise, refused outside it."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedot.aggregation.means import mean, trimmed_mean
from fedot.errors import ProtocolError


def updates(*rows):
    return [{"w": torch.tensor(row, dtype=torch.float32)} for row in rows]


def random_updates(num, seed=0, size=50):
    rng = torch.Generator().manual_seed(seed)
    return [
        {"a": torch.randn(size, generator=rng), "b": torch.randn(2, 3, generator=rng)}
        for _ in range(num)
    ]


def test_mean_by_hand():
    result = mean(updates([1.0, -2.0], [3.0, 0.0], [5.0, 5.0]))
    assert result["w"].tolist() == [3.0, 1.0]
    assert result["w"].dtype == torch.float64


def test_mean_is_the_plain_mean_in_float64():
    given_updates = random_updates(7)
    result = mean(given_updates)
    assert list(result) == ["a", "b"]
    for name in result:
        wanted = np.mean([u[name].double().numpy() for u in given_updates], axis=0)
        # numpy may add in another order: a few last bits of float64.
        np.testing.assert_allclose(result[name].numpy(), wanted, rtol=0, atol=1e-15)


def test_small_updates_are_not_lost_beside_large_ones():
    # In float32, 2^24 + 1 is 2^24: the ones would vanish.
    result = mean(updates([2.0**24], [1.0], [1.0], [2.0**24]))
    assert result["w"].item() == (2.0**25 + 2) / 4


def test_mean_of_one_is_itself():
    (only,) = random_updates(1)
    assert torch.equal(mean([only])["a"], only["a"].double())


def test_shapes_and_scalars_stay():
    result = mean([{"s": torch.tensor(1.0), "e": torch.zeros(0), "m": torch.ones(2, 1)}] * 2)
    assert {name: tuple(t.shape) for name, t in result.items()} == {"s": (), "e": (0,), "m": (2, 1)}


def test_trimmed_mean_by_hand():
    rows = updates([1.0, 9.0], [2.0, 7.0], [3.0, 8.0], [100.0, 6.0], [-50.0, -1000.0])
    assert trimmed_mean(rows, 1)["w"].tolist() == [2.0, 7.0]
    assert trimmed_mean(rows, 2)["w"].tolist() == [2.0, 7.0]


def test_trimmed_mean_of_three_is_the_median():
    rows = random_updates(3)
    wanted = torch.stack([row["a"] for row in rows]).median(dim=0).values
    assert torch.equal(trimmed_mean(rows, 1)["a"], wanted.double())


def test_trimming_nothing_is_the_mean():
    rows = random_updates(5)
    assert torch.equal(trimmed_mean(rows, 0)["a"], mean(rows)["a"])


@pytest.mark.parametrize(("num", "trimmed"), [(0, 0), (1, 1), (2, 1), (4, 2), (3, 9)])
def test_too_few_updates_to_trim_are_refused(num, trimmed):
    with pytest.raises(ProtocolError, match=f"{num} updates arrived"):
        trimmed_mean(random_updates(num), trimmed)


def test_one_more_than_twice_the_trimmed_is_enough():
    assert trimmed_mean(random_updates(5), 2)["a"].shape == (50,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("num_trimmed", [0, 1])
def test_value_that_is_not_finite_is_refused_even_where_it_would_be_trimmed(value, num_trimmed):
    rows = random_updates(3)
    rows[1]["b"][1, 2] = value
    with pytest.raises(ProtocolError, match="an update's b is not finite"):
        trimmed_mean(rows, num_trimmed)


def test_same_order_gives_the_same_bits():
    # What is guaranteed of the mean: the caller sorts by client, so arrival order cannot matter.
    by_client = {f"client-{n}": update for n, update in enumerate(random_updates(4))}
    results = []
    for arrived in permutations(by_client):
        received = {name: by_client[name] for name in arrived}
        results.append(mean([received[name] for name in sorted(received)])["a"])
    assert all(torch.equal(result, results[0]) for result in results)


def test_order_of_any_kind_changes_no_bit_of_a_trimmed_mean():
    # Trimming sorts every coordinate itself.
    rows = random_updates(5)
    wanted = trimmed_mean(rows, 1)["a"]
    assert all(torch.equal(trimmed_mean(p, 1)["a"], wanted) for p in permutations(rows))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
honest = st.floats(-10, 10, width=32)


@given(st.lists(honest, min_size=2, max_size=6), finite, st.integers(0, 6))
def test_one_arbitrary_client_cannot_push_a_trimmed_mean_out_of_the_others_range(
    values, evil, place
):
    rows = updates(*([v] for v in values))
    rows.insert(place, {"w": torch.tensor([evil])})
    result = trimmed_mean(rows, 1)["w"].item()
    # A mean of equal values may be off by float64's last bit.
    assert min(values) - 1e-14 <= result <= max(values) + 1e-14


@given(st.lists(honest, min_size=3, max_size=6), st.lists(finite, min_size=2, max_size=2))
def test_two_arbitrary_clients_cannot_either_where_two_are_trimmed(values, evil):
    rows = updates(*([v] for v in [*evil, *values]))
    result = trimmed_mean(rows, 2)["w"].item()
    assert min(values) - 1e-14 <= result <= max(values) + 1e-14


def test_one_arbitrary_client_moves_a_plain_mean_anywhere():
    # Why trimming exists.
    assert mean(updates([0.0], [1.0], [1e30]))["w"].item() > 1e29


def test_updates_stay_as_they_were():
    rows = random_updates(3)
    before = [row["a"].clone() for row in rows]
    trimmed_mean(rows, 1)
    assert all(torch.equal(row["a"], kept) for row, kept in zip(rows, before, strict=True))
