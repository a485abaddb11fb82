"""Canaries are what they are said to be: clipped to C, in coordinates of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedot.client.training import PrivateSettings, TrainingSettings, train_privately
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.privacy.audit_bounds import repeated_lower_bound
from fedot.privacy.noise import KEY_BYTES, NoiseSource
from fedot.studies.canaries import (
    canary_rows,
    observed_steps,
    play_gradient_game,
    play_repeated_games,
    with_canaries,
)

KEY = bytes(range(KEY_BYTES))


def test_every_step_is_seen_once(adapter: Adapter, records: Sequences) -> None:
    settings = TrainingSettings(3, 4, 4, 1e-3)
    with observed_steps(list(adapter.parameters.values())) as steps:
        private = PrivateSettings(0.2, 1.0, 1.0)
        train_privately(adapter, records, settings, private, NoiseSource(KEY))
    assert len(steps) == 3
    assert all(len(step) == adapter.num_parameters for step in steps)
    assert all(bool(step.any()) for step in steps)


def test_others_steps_are_not_seen(adapter: Adapter) -> None:
    stranger = torch.nn.Parameter(torch.ones(2))
    stranger.grad = torch.ones(2)
    with observed_steps(list(adapter.parameters.values())) as steps:
        torch.optim.SGD([stranger], lr=0.1).step()
    assert not steps


def test_a_canary_that_is_drawn_moves_its_own_coordinate_by_the_clip_norm(
    adapter: Adapter, records: Sequences
) -> None:
    rows = canary_rows(train_privately, PrivateSettings(0.4, 0.0, 0.3), 6, 50, NoiseSource(KEY))
    assert 0.2 < rows.mean() < 0.6
    # All of them drawn, no noise: the score's own input is exactly 1 for members, 0 for others.
    private = PrivateSettings(1.0, 1e-4, 0.3)
    scores, members = play_gradient_game(
        train_privately, adapter, records, private, 1, 40, torch.Generator(), NoiseSource(KEY)
    )
    assert (scores[members] > 0).all()
    assert (scores[~members] < 0).all()
    unit = 1 / (2 * 1e-4**2)
    np.testing.assert_allclose(scores[members], unit, rtol=0.01)


def test_a_canary_layer_does_not_change_real_records(adapter: Adapter, records: Sequences) -> None:
    beside, vocabulary = with_canaries(adapter, 5, 1.0)
    torch.nn.init.normal_(beside.parameters["canary.weight"])
    with torch.inference_mode():
        ours = beside.model(input_ids=records.ids, use_cache=False).logits
        theirs = adapter.model(input_ids=records.ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs.float(), atol=0, rtol=0)
    assert vocabulary == adapter.model.config.vocab_size


@pytest.mark.parametrize(("bug", "caught"), [("nothing", False), ("no noise", True)])
def test_repeated_games_tell_noise_from_none(
    planted: dict[str, Any], bug: str, caught: bool
) -> None:
    """At a claimed epsilon of 1 (z = 3.7); right code fails for one set of keys in twenty."""
    counter = iter(range(1000))
    counts = play_repeated_games(
        planted[bug],
        PrivateSettings(1.0, 3.73, 1.0),
        1,
        60,
        torch.Generator().manual_seed(2),
        lambda: NoiseSource(bytes([next(counter)]) + bytes(KEY_BYTES - 1)),
    )
    assert counts[1] + counts[3] == 60
    assert (repeated_lower_bound(*counts, 1e-5) > 1.0) == caught
