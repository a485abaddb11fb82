"""Mistakes that the field has made in its accounting; each is planted, and seen.

2: shuffled batches accounted as Poisson. 8: a restart that replays noise. And noise that clients or
rounds share. (8, a restart that forgets what was spent: `test_kills.py`. 12: `test_accounting.py`.)
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedot.client import training
from fedot.client.chains import state_chain, update_chain
from fedot.client.round import Site, privacy_event, run_round
from fedot.compression.codec import decode, encode, spec_of
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.data.tokenize import Sequences
from fedot.messages import ClientInfo, RoundTask
from fedot.models.adapters import Adapter, AdapterSpec, attach, linear_names
from fedot.privacy.noise import KEY_BYTES, NoiseSource

PAYLOAD = PayloadConfig()
NUM_RECORDS, BATCH, STEPS = 40, 8, 60


class Watched(Sequences):
    """Records that tell which rows were taken."""

    def take(self, rows: Any) -> Sequences:
        taken.append(np.asarray(rows))
        return super().take(rows)


taken: list[np.ndarray] = []


@pytest.fixture(autouse=True)
def nothing_taken() -> None:
    taken.clear()


@pytest.fixture
def adapter(tiny_llama: Any) -> Adapter:
    spec = AdapterSpec("lora", (0,), 1, 2.0, linear_names(tiny_llama, (0,))[:1], seed=1)
    return attach(tiny_llama, spec, range(4))


def site(folder: Path, name: str = "a") -> Site:
    ids = torch.randint(4, 300, (NUM_RECORDS, 4), generator=torch.Generator().manual_seed(0))
    learned = torch.ones_like(ids, dtype=torch.bool)
    return Site(ClientInfo(name, f"data-{name}"), Watched(ids, learned), folder / name)


def task(adapter: Adapter, steps: int = 1, number: int = 1) -> RoundTask:
    return RoundTask(
        run_id="run",
        round=number,
        state=encode(adapter.state(), state_chain(PAYLOAD)).payload,
        learning_rate=1e-2,
        training=TrainingConfig(steps_per_round=steps, batch_size=BATCH),
        privacy=PrivacyConfig(target_epsilon=8.0),
        payload=PAYLOAD,
        planned_rounds={"a": 2, "b": 2},
    )


def check_batches_are_poisson(batches: list[np.ndarray], prob: float, num_steps: int) -> None:
    """What the accountant counts on: each record in each batch by a coin of its own.

    False alarms: the number of rows over all steps is binomial, 5 standard deviations are allowed;
    sizes of independent coins vary, and that all 60 batches have nearly the same size (below a
    third of the binomial variance) has a chance below 1e-9; both together below 1e-6.
    """
    sizes = np.array([len(rows) for rows in batches] + [0] * (num_steps - len(batches)))
    assert len(batches) <= num_steps
    assert all(len(set(rows.tolist())) == len(rows) for rows in batches)
    trials, variance = num_steps * NUM_RECORDS, prob * (1 - prob)
    assert abs(sizes.sum() - trials * prob) < 5 * math.sqrt(trials * variance)
    assert sizes.var() > NUM_RECORDS * variance / 3, "batches have a fixed size: not Poisson"


def train_once(adapter: Adapter, folder: Path) -> tuple[float, int]:
    asked, where = task(adapter, STEPS), site(folder)
    event = privacy_event(where, asked)
    assert event is not None
    run_round(where, adapter, asked)
    return event.sampling_prob, event.num_steps


def test_batches_are_what_the_event_says(adapter: Adapter, tmp_path: Path) -> None:
    prob, num_steps = train_once(adapter, tmp_path)
    assert (prob, num_steps) == (BATCH / NUM_RECORDS, STEPS)
    check_batches_are_poisson(taken, prob, num_steps)


def shuffled(num_records: int, sampling_prob: float, noise: NoiseSource, *_: Any) -> Any:
    """The planted bug: an epoch's permutation, cut into batches."""
    if not len(shuffled_rows):
        shuffled_rows.extend(np.argsort(noise.uniform(num_records)).tolist())
    return np.array([shuffled_rows.pop() for _ in range(round(num_records * sampling_prob))])


shuffled_rows: list[int] = []


def test_shuffled_batches_accounted_as_poisson_are_seen(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "poisson_batch", shuffled)
    prob, num_steps = train_once(adapter, tmp_path)
    with pytest.raises(AssertionError, match="not Poisson"):
        check_batches_are_poisson(taken, prob, num_steps)


Rounds = list[tuple[Site, RoundTask]]
MakeNoise = Callable[[], NoiseSource]


def two_clients_two_rounds(adapter: Adapter, folder: Path) -> Rounds:
    """With the same records, and a restart: the last one trains a round again."""
    clients = [site(folder, "a"), site(folder, "b"), site(folder / "again", "b")]
    first, second = task(adapter), task(adapter, number=2)
    return [(clients[0], first), (clients[1], first), (clients[1], second), (clients[2], second)]


def check_noise_is_never_shared(adapter: Adapter, rounds: Rounds, make_noise: MakeNoise) -> None:
    """Updates of the same records from the same state differ by their noise alone.

    Two that share noise and batches are equal. False alarms: none, the updates are continuous.
    """
    start = rounds[0][1].state
    updates = []
    for where, asked in rounds:
        same_state = dataclasses.replace(asked, state=start)
        result = run_round(where, adapter, same_state, make_noise=make_noise)
        expected = spec_of(adapter.state())
        update = decode(result.payload, expected, allowed=[update_chain(PAYLOAD)])
        updates.append(torch.cat([tensor.flatten() for tensor in update.values()]))
    for number, one in enumerate(updates):
        for other in updates[:number]:
            assert not torch.equal(one, other), "two releases share their noise"


def test_clients_rounds_and_restarts_have_noise_of_their_own(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[bytes] = []

    def watched(num: int) -> bytes:
        keys.append(real(num))
        return keys[-1]

    real = os.urandom
    rounds = two_clients_two_rounds(adapter, tmp_path)
    monkeypatch.setattr("fedot.privacy.noise.os.urandom", watched)
    check_noise_is_never_shared(adapter, rounds, NoiseSource.from_os)
    drawn = [key for key in keys if len(key) == KEY_BYTES]
    assert len(drawn) >= len(rounds)
    assert len(set(drawn)) == len(drawn)
    monkeypatch.undo()
    # 8: nothing that is kept would let a restart draw the same noise again.
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [key for key in drawn if key in content or key.hex().encode() in content]


def saved_seed() -> Iterator[NoiseSource]:
    """The planted bug: every release starts from the seed that was kept."""
    while True:
        yield NoiseSource(bytes(KEY_BYTES))


def test_noise_replayed_from_a_saved_seed_is_seen(adapter: Adapter, tmp_path: Path) -> None:
    rounds, replayed = two_clients_two_rounds(adapter, tmp_path), saved_seed()
    with pytest.raises(AssertionError, match="share their noise"):
        check_noise_is_never_shared(adapter, rounds, lambda: next(replayed))
