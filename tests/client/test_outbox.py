"""Error feedback through kills: a residual is never lost, and never applied twice."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedot import journal
from fedot.client import outbox
from fedot.client import round as client_round
from fedot.client.chains import state_chain, update_chain
from fedot.client.outbox import Outbox
from fedot.client.round import Site, run_round
from fedot.compression.codec import decode, encode, spec_of
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.data.tokenize import Sequences
from fedot.errors import ProtocolError
from fedot.messages import ClientInfo, ClientResult, RoundTask
from fedot.models.adapters import Adapter, AdapterSpec, attach, linear_names
from fedot.privacy.noise import NoiseSource

PAYLOAD = PayloadConfig(chain="top_k(keep_ratio=0.1)+int8+deflate")
NO_DP, DP = PrivacyConfig(unit="none"), PrivacyConfig(target_epsilon=8.0)


@pytest.fixture
def adapter(tiny_llama: Any) -> Adapter:
    spec = AdapterSpec("lora", (0, 3), 2, 4.0, linear_names(tiny_llama, (0, 3)), seed=1)
    return attach(tiny_llama, spec, range(4))


@pytest.fixture
def state(adapter: Adapter) -> bytes:
    return encode(adapter.state(), state_chain(PAYLOAD)).payload


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_at(tmp_path / "a")


def site_at(folder: Path) -> Site:
    ids = torch.randint(4, 300, (20, 10), generator=torch.Generator().manual_seed(0))
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    return Site(ClientInfo("a", "data-a"), Sequences(ids, learned), folder)


def task_for(state: bytes, round: int, **changes: Any) -> RoundTask:
    task = RoundTask(
        run_id="run",
        round=round,
        state=state,
        learning_rate=1e-2,
        training=TrainingConfig(steps_per_round=2, batch_size=5),
        privacy=NO_DP,
        payload=PAYLOAD,
        planned_rounds={"a": 4},
    )
    return dataclasses.replace(task, **changes)


def received(result: ClientResult, adapter: Adapter) -> dict[str, Tensor]:
    chain = update_chain(PAYLOAD)
    return decode(result.payload, spec_of(adapter.state()), allowed=[chain])


def trained(site: Site, adapter: Adapter, task: RoundTask) -> dict[str, Tensor]:
    """The round's update before any chain: what the site would send as float32."""
    plain = PayloadConfig(chain="float32")
    elsewhere = dataclasses.replace(site, folder=site.folder.with_name("plain"))
    result = run_round(elsewhere, adapter, dataclasses.replace(task, payload=plain))
    shutil.rmtree(elsewhere.folder)
    return decode(result.payload, spec_of(adapter.state()), allowed=[update_chain(plain)])


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the product may catch it."""


@contextmanager
def killed_at(patch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """Kill before the `step`-th thing that a site does to its disk, counted from 1."""
    steps = itertools.count(1)

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == step:
                raise Killed
            return work(*args, **kwargs)

        return run

    with patch.context() as during:
        during.setattr(outbox, "write_durably", counted(journal.write_durably))
        during.setattr(Path, "unlink", counted(Path.unlink))
        during.setattr(client_round.Ledger, "charge", counted(client_round.Ledger.charge))
        yield


def test_what_was_lost_is_sent_with_the_next_round_taken_part_in(
    site: Site, adapter: Adapter, state: bytes
) -> None:
    tasks = [task_for(state, number) for number in (1, 4)]
    updates = [trained(site, adapter, task) for task in tasks]
    got = [received(run_round(site, adapter, task), adapter) for task in tasks]
    kept = site.outbox.residual(task_for(state, 5), spec_of(got[0]), lambda key, digest: True)
    assert kept is not None
    for name in updates[0]:
        sent, left = got[0][name] + got[1][name], kept[name]
        torch.testing.assert_close(sent + left, updates[0][name] + updates[1][name])
    assert any(bool(tensor.any()) for tensor in kept.values())


def test_without_feedback_nothing_is_kept(site: Site, adapter: Adapter, state: bytes) -> None:
    payload = PAYLOAD.model_copy(update={"error_feedback": False})
    run_round(site, adapter, task_for(state, 1, payload=payload))
    assert sorted(path.suffix for path in (site.folder / "updates").iterdir()) == [
        ".json",
        ".update",
    ]


# Metadata, residual, update, then the three files of the round before.
STEPS = 6


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_kill_at_any_step_changes_no_byte_of_any_round(
    tmp_path: Path,
    adapter: Adapter,
    state: bytes,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    tasks = [task_for(state, number) for number in (1, 2, 3)]
    whole = [run_round(site_at(tmp_path / "whole"), adapter, task) for task in tasks]
    cut = site_at(tmp_path / "cut")
    got = [run_round(cut, adapter, tasks[0])]
    with pytest.raises(Killed), killed_at(monkeypatch, step):
        run_round(cut, adapter, tasks[1])
    got += [run_round(cut, adapter, task) for task in tasks[1:]]
    assert got == whole
    files = sorted(path.name for path in (cut.folder / "updates").iterdir())
    assert files == ["run-3.json", "run-3.residual", "run-3.update"]


def test_there_are_as_many_steps_as_the_test_above_kills_at(
    site: Site, adapter: Adapter, state: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_round(site, adapter, task_for(state, 1))
    with killed_at(monkeypatch, STEPS + 1):
        run_round(site, adapter, task_for(state, 2))


def test_a_resent_round_applies_no_residual_twice(
    tmp_path: Path, adapter: Adapter, state: bytes
) -> None:
    once, twice = site_at(tmp_path / "once"), site_at(tmp_path / "twice")
    for number in (1, 2, 3):
        task = task_for(state, number)
        result = run_round(once, adapter, task)
        assert run_round(twice, adapter, task) == result
        assert run_round(twice, adapter, task) == result


def test_another_run_at_the_site_starts_without_a_residual(
    tmp_path: Path, adapter: Adapter, state: bytes
) -> None:
    used, fresh = site_at(tmp_path / "used"), site_at(tmp_path / "fresh")
    run_round(used, adapter, task_for(state, 1))
    other = task_for(state, 2, run_id="other")
    assert run_round(used, adapter, other) == run_round(fresh, adapter, other)


def seeded(number: int) -> Callable[[], NoiseSource]:
    return lambda: NoiseSource(bytes([number]) * 32)


def test_a_training_that_was_thrown_away_leaves_nothing_in_later_updates(
    tmp_path: Path, adapter: Adapter, state: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two outputs of the mechanism for one reservation would be more than epsilon says."""
    tasks = [task_for(state, number, privacy=DP) for number in (1, 2)]
    whole, cut = site_at(tmp_path / "whole"), site_at(tmp_path / "cut")
    with pytest.raises(Killed), killed_at(monkeypatch, 3):
        run_round(cut, adapter, tasks[0], make_noise=seeded(9))
    assert (cut.folder / "updates" / "run-1.residual").exists(), "killed after the residual"
    for number, task in enumerate(tasks):
        results = [run_round(s, adapter, task, make_noise=seeded(number)) for s in (whole, cut)]
        assert results[0] == results[1]


def test_an_update_that_was_never_charged_feeds_no_later_one(
    tmp_path: Path, adapter: Adapter, state: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task_for(state, number, privacy=DP) for number in (1, 2, 3)]
    spared, cut = site_at(tmp_path / "spared"), site_at(tmp_path / "cut")
    for site in (spared, cut):
        run_round(site, adapter, tasks[0], make_noise=seeded(1))
    # Stored and not charged; the server goes on without it.
    with pytest.raises(Killed), killed_at(monkeypatch, 4):
        run_round(cut, adapter, tasks[1], make_noise=seeded(2))
    assert [entry.digest is None for entry in cut.ledger.entries()] == [False, True]
    results = [run_round(s, adapter, tasks[2], make_noise=seeded(3)) for s in (spared, cut)]
    assert results[0].payload == results[1].payload


def test_what_a_round_without_dp_lost_never_enters_one_with_dp(
    tmp_path: Path, adapter: Adapter, state: bytes
) -> None:
    used, fresh = site_at(tmp_path / "used"), site_at(tmp_path / "fresh")
    run_round(used, adapter, task_for(state, 1))
    task = task_for(state, 2, privacy=DP)
    results = [run_round(s, adapter, task, make_noise=seeded(1)) for s in (used, fresh)]
    assert results[0].payload == results[1].payload


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_residual_that_cannot_be_used_is_named_and_not_replaced(
    site: Site, adapter: Adapter, state: bytes, damage: str
) -> None:
    run_round(site, adapter, task_for(state, 1))
    path = site.folder / "updates" / "run-1.residual"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ProtocolError, match=r"run-1\.residual must hold"):
        run_round(site, adapter, task_for(state, 2))


def test_a_residual_that_diverged_is_left_out(
    site: Site, adapter: Adapter, state: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_round(site, adapter, task_for(state, 1))
    fresh = dataclasses.replace(site, folder=site.folder.with_name("fresh"))
    expected = run_round(fresh, adapter, task_for(state, 2))
    huge = {name: torch.full_like(tensor, 2e9) for name, tensor in adapter.state().items()}
    monkeypatch.setattr(Outbox, "residual", lambda *_: huge)
    assert run_round(site, adapter, task_for(state, 2)).payload == expected.payload


def test_stochastic_rounding_is_seeded_by_run_client_and_round(
    tmp_path: Path, adapter: Adapter, state: bytes
) -> None:
    payload = PayloadConfig(chain="int8(rounding=stochastic)")
    task = task_for(state, 1, payload=payload)
    one, two = (run_round(site_at(tmp_path / name), adapter, task) for name in ("one", "two"))
    assert one == two
    nearest = dataclasses.replace(task, payload=PayloadConfig(chain="int8"))
    assert run_round(site_at(tmp_path / "nearest"), adapter, nearest).payload != one.payload
