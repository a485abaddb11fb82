from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from fedot.client.chains import state_chain
from fedot.client.round import Site
from fedot.compression.codec import encode
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.data.tokenize import Sequences
from fedot.engines.local import LocalEngine
from fedot.messages import ClientFailure, ClientInfo, ClientResult, RoundTask
from fedot.models.adapters import AdapterSpec, attach, linear_names

NAMES = [f"client-{n}" for n in range(6)]


@pytest.fixture
def engine(tiny_llama: Any, tmp_path: Path) -> LocalEngine:
    spec = AdapterSpec("lora", (0, 3), 2, 4.0, linear_names(tiny_llama, (0, 3)), seed=1)
    adapter = attach(tiny_llama, spec, range(4))
    ids = torch.randint(4, 300, (12, 8), generator=torch.Generator().manual_seed(0))
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    records = Sequences(ids, learned)
    sites = [Site(ClientInfo(name, name), records, tmp_path / name) for name in reversed(NAMES)]
    return LocalEngine(adapter, sites)


@pytest.fixture
def task(engine: LocalEngine) -> RoundTask:
    payload = PayloadConfig()
    return RoundTask(
        run_id="run",
        round=1,
        state=encode(engine._adapter.state(), state_chain(payload)).payload,
        learning_rate=1e-2,
        training=TrainingConfig(steps_per_round=1, batch_size=4),
        privacy=PrivacyConfig(unit="none"),
        payload=payload,
        planned_rounds=dict.fromkeys(NAMES, 1),
    )


def test_clients_are_listed_by_name(engine: LocalEngine) -> None:
    assert [info.name for info in engine.clients()] == NAMES


def test_every_client_starts_from_the_servers_state(engine: LocalEngine, task: RoundTask) -> None:
    """Same records and seed label apart from the name: leftovers of one would show in the next."""
    forward = {r.client: r.digest for r in engine.run(task, NAMES) if isinstance(r, ClientResult)}
    for site in engine._sites.values():
        for path in (site.folder / "updates").iterdir():
            path.unlink()
    backward = {r.client: r.digest for r in engine.run(task, NAMES[::-1])}
    assert forward == backward
    assert len(forward) == len(NAMES)


def test_a_client_that_fails_does_not_stop_the_others(engine: LocalEngine, task: RoundTask) -> None:
    tight = PrivacyConfig(target_epsilon=1.0)
    private = dataclasses.replace(task, privacy=tight, planned_rounds=dict.fromkeys(NAMES, 1))
    done = list(engine.run(private, NAMES[:1]))
    assert isinstance(done[0], ClientResult)
    over = dataclasses.replace(private, round=2)  # the whole budget went into round 1
    results = list(engine.run(over, NAMES[:2]))
    assert isinstance(results[0], ClientFailure)
    assert "limit is 1" in results[0].reason
    assert isinstance(results[1], ClientResult)


def test_cancel_stops_before_the_next_client(engine: LocalEngine, task: RoundTask) -> None:
    results = engine.run(task, NAMES)
    next(results)
    engine.cancel(task.task_id)
    assert list(results) == []


def test_memory_grows_by_no_model_per_client(engine: LocalEngine, task: RoundTask) -> None:
    """All clients work on the one model: no tensor of a model's size stays behind."""
    model_values = sum(p.numel() for p in engine._adapter.model.parameters())

    def values_alive() -> int:
        gc.collect()
        storages = {
            o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() // 4
            for o in gc.get_objects()
            if issubclass(type(o), torch.Tensor)
        }
        return sum(storages.values())

    list(engine.run(task, NAMES[:1]))
    after_one = values_alive()
    list(engine.run(dataclasses.replace(task, round=2), NAMES))
    assert values_alive() - after_one < model_values / 10
