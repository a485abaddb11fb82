"""Every known bug, planted in our DP-SGD at a claimed epsilon of 1, and what catches it.

The table in docs/privacy.md has its figures from here. Keys and coins are fixed, so a test's
outcome is too; the text says how likely right code would have been to fail with other ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedot.client.training import PrivateSettings, train_privately
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.privacy.accounting import SampledGaussian, calibrate_noise, epsilon_of
from fedot.privacy.noise import KEY_BYTES, NoiseSource
from fedot.studies.audit_judgement import game_figures
from fedot.studies.mechanism import check_sampling, measure_sensitivity

Train = Callable[..., None]
Planted = dict[str, Train]

Q, STEPS, CANARIES, DELTA = 0.5, 4, 500, 1e-5
CLAIMED = 1.0
SAMPLING_ALPHA = 1e-4


def figures_of(train: Train, adapter: Adapter | None, records: Sequences | None) -> dict[str, Any]:
    noise = calibrate_noise(Q, STEPS, CLAIMED, DELTA)
    assert epsilon_of([SampledGaussian(Q, noise, STEPS)], DELTA) <= CLAIMED
    return game_figures(
        train,
        adapter,
        records,
        PrivateSettings(Q, noise, 1.0),
        STEPS,
        CANARIES,
        DELTA,
        torch.Generator().manual_seed(1),
        NoiseSource(bytes(range(KEY_BYTES))),
    )


def test_right_code_passes_the_canaries(adapter: Adapter, records: Sequences) -> None:
    """Would fail for one key in twenty at most."""
    found = figures_of(train_privately, adapter, records)
    assert not found["refuted"]
    assert found["lower_bound"] <= CLAIMED
    assert found["power"]["noise / 4"] > 0.95, "so weak a game would pass anything"


@pytest.mark.parametrize(
    ("bug", "at_least"), [("no noise", 3.0), ("noise / 4", 1.3), ("batch clipping", 3.0)]
)
def test_canaries_catch(
    planted: Planted, bug: str, at_least: float, adapter: Adapter, records: Sequences
) -> None:
    found = figures_of(planted[bug], adapter, records)
    assert found["refuted"]
    assert found["lower_bound"] > at_least > CLAIMED
    assert found["lower_bound"] <= found["ceiling"]


def test_canaries_leave_the_adapter_as_it_was(adapter: Adapter, records: Sequences) -> None:
    before = adapter.state()
    figures_of(train_privately, adapter, records)
    assert all(torch.equal(before[n], t) for n, t in adapter.state().items())


def test_right_code_has_sensitivity_one(adapter: Adapter, records: Sequences) -> None:
    """No chance in it. Not far below one either, or nothing would have been clipped."""
    assert 0.99 < measure_sensitivity(train_privately, adapter, records) <= 1.001


def test_sensitivity_catches_a_token_mean_loss(
    planted: Planted, adapter: Adapter, records: Sequences
) -> None:
    assert measure_sensitivity(planted["token-mean loss"], adapter, records) > 4.0


def test_token_mean_loss_escapes_the_canaries(
    planted: Planted, adapter: Adapter, records: Sequences
) -> None:
    """Why it has a check of its own: each row by itself is clipped as it should be."""
    assert not figures_of(planted["token-mean loss"], adapter, records)["refuted"]


@pytest.mark.parametrize("q", [0.02, 0.3, 0.5])
def test_right_code_samples_as_poisson(q: float) -> None:
    """Would fail for one key in ten thousand."""
    found = check_sampling(train_privately, q, NoiseSource(bytes(KEY_BYTES)))
    assert found.p_value > SAMPLING_ALPHA
    assert found.rate == pytest.approx(q, rel=0.15)


@pytest.mark.parametrize("bug", ["shuffled epochs", "batches of one size"])
def test_sampling_check_catches(planted: Planted, bug: str) -> None:
    found = check_sampling(planted[bug], 0.3, NoiseSource(bytes(KEY_BYTES)))
    assert found.p_value < SAMPLING_ALPHA
    assert found.size_variance_ratio < 0.1
    assert found.rate == pytest.approx(0.3, abs=0.01), "the rate alone looks right"


def test_shuffled_batches_escape_the_canaries(planted: Planted) -> None:
    """Why they have a check of their own."""
    assert not figures_of(planted["shuffled epochs"], None, None)["refuted"]


def test_nothing_is_sampled_where_everyone_is_in_every_batch() -> None:
    assert check_sampling(train_privately, 1.0, NoiseSource(bytes(KEY_BYTES))) is None
