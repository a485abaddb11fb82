"""One round at a site, start to end; and what a kill between two steps leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from fedot.client import round as client_round
from fedot.client.bounds import LARGEST_SENT
from fedot.client.chains import state_chain, update_chain
from fedot.client.round import Site, privacy_event, run_round
from fedot.compression.codec import decode, encode, spec_of
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.data.tokenize import Sequences
from fedot.errors import BudgetError, ConfigError, ProtocolError, WireError
from fedot.messages import ClientInfo, ClientResult, RoundTask
from fedot.models.adapters import Adapter, AdapterSpec, attach, linear_names
from fedot.privacy.policy import Policy

PAYLOAD = PayloadConfig(chain="float32+deflate")


@pytest.fixture
def adapter(tiny_llama: Any) -> Adapter:
    spec = AdapterSpec("lora", (0, 3), 2, 4.0, linear_names(tiny_llama, (0, 3)), seed=1)
    return attach(tiny_llama, spec, range(4))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    ids = torch.randint(4, 300, (20, 10), generator=torch.Generator().manual_seed(0))
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    return Site(ClientInfo("a", "data-a"), Sequences(ids, learned), tmp_path / "a")


def task_for(adapter: Adapter, **changes: Any) -> RoundTask:
    task = RoundTask(
        run_id="run",
        round=1,
        state=encode(adapter.state(), state_chain(PAYLOAD)).payload,
        learning_rate=1e-2,
        training=TrainingConfig(steps_per_round=2, batch_size=5),
        privacy=PrivacyConfig(target_epsilon=8.0),
        payload=PAYLOAD,
        planned_rounds={"a": 2},
    )
    return dataclasses.replace(task, **changes)


NO_DP = PrivacyConfig(unit="none")


def test_update_is_after_minus_before(site: Site, adapter: Adapter) -> None:
    before = adapter.state()
    result = run_round(site, adapter, task_for(adapter, privacy=NO_DP))
    update = decode(result.payload, spec_of(before), allowed=[update_chain(PAYLOAD)])
    for name, after in adapter.state().items():
        torch.testing.assert_close(update[name], after - before[name], rtol=0, atol=0)
        assert update[name].abs().sum() > 0


def test_what_is_charged_is_what_is_sent(site: Site, adapter: Adapter) -> None:
    result = run_round(site, adapter, task_for(adapter))
    (entry,) = site.ledger.entries()
    assert entry.digest == result.digest
    assert entry.event.num_steps == 2
    assert 0 < result.epsilon < 8.0


def test_planned_rounds_together_stay_within_the_target(site: Site, adapter: Adapter) -> None:
    for number in (1, 2):
        result = run_round(site, adapter, task_for(adapter, round=number))
    assert 7.5 < result.epsilon <= 8.0


def test_a_round_more_than_planned_is_refused_before_training(site: Site, adapter: Adapter) -> None:
    for number in (1, 2):
        run_round(site, adapter, task_for(adapter, round=number))
    state, ledger = adapter.state(), site.ledger.path.read_bytes()
    with pytest.raises(BudgetError, match="limit is 8"):
        run_round(site, adapter, task_for(adapter, round=3))
    assert site.ledger.path.read_bytes() == ledger
    assert all(torch.equal(state[n], t) for n, t in adapter.state().items())


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the product may catch it."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


def test_killed_before_the_store_trains_again_under_the_same_reservation(
    site: Site, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_for(adapter)
    with monkeypatch.context() as patch:
        patch.setattr(client_round, "_store", killed)
        with pytest.raises(Killed):
            run_round(site, adapter, task)
    (held,) = site.ledger.entries()
    assert held.digest is None
    result = run_round(site, adapter, task)
    (entry,) = site.ledger.entries()
    assert entry == dataclasses.replace(held, digest=result.digest)


@pytest.mark.parametrize("charged", [False, True])
def test_killed_after_the_store_sends_those_bytes_and_never_trains_again(
    site: Site, adapter: Adapter, monkeypatch: pytest.MonkeyPatch, charged: bool
) -> None:
    task = task_for(adapter)
    if charged:
        first = run_round(site, adapter, task)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(type(site.ledger), "charge", killed)
            with pytest.raises(Killed):
                run_round(site, adapter, task)
    monkeypatch.setattr(client_round, "train_privately", killed)
    again = run_round(site, adapter, task)
    (entry,) = site.ledger.entries()
    assert entry.digest == again.digest
    if charged:
        assert again == first


def test_charged_update_that_is_gone_is_not_trained_again(
    site: Site, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_for(adapter)
    run_round(site, adapter, task)
    for path in site.folder.rglob("*.update"):
        path.unlink()
    monkeypatch.setattr(client_round, "train_privately", killed)
    with pytest.raises(ProtocolError, match="no longer has"):
        run_round(site, adapter, task)


def policy(**terms: Any) -> Policy:
    known = {"dataset_id": "data-a", "max_epsilon": 9.0, "delta": 1e-5}
    return Policy.model_validate(known | terms)


def with_policy(site: Site, **terms: Any) -> Site:
    return dataclasses.replace(site, policy=policy(**terms))


@pytest.mark.parametrize(
    ("terms", "changes", "error", "word"),
    [
        ({"max_epsilon": 4.0}, {}, BudgetError, "What would fit"),
        ({"delta": 1e-9}, {}, BudgetError, "at delta 1e-09"),
        ({}, {"privacy": NO_DP}, BudgetError, "demands DP"),
        ({"adapters": ["full"]}, {}, ConfigError, "adapter is lora"),
        ({"chains": ["int8+deflate"]}, {}, ConfigError, "chain is float32"),
    ],
)
def test_policy_refuses_before_anything_is_reserved_or_trained(
    site: Site,
    adapter: Adapter,
    monkeypatch: pytest.MonkeyPatch,
    terms: dict[str, Any],
    changes: dict[str, Any],
    error: type[Exception],
    word: str,
) -> None:
    for name in ("train", "train_privately"):
        monkeypatch.setattr(client_round, name, killed)
    with pytest.raises(error, match=word):
        run_round(with_policy(site, **terms), adapter, task_for(adapter, **changes))
    assert not site.ledger.path.exists()


def test_policy_counts_every_run_on_the_data_set(site: Site, adapter: Adapter) -> None:
    owned = with_policy(site)
    for number in (1, 2):
        run_round(owned, adapter, task_for(adapter, round=number))
    with pytest.raises(BudgetError, match="has spent"):
        run_round(owned, adapter, task_for(adapter, run_id="another"))
    assert {entry.key for entry in site.ledger.entries()} == {"run/1", "run/2"}
    # Without a policy to say otherwise, a task that asks for more is done.
    generous = with_policy(site, max_epsilon=20.0)
    run_round(generous, adapter, task_for(adapter, run_id="another"))


def test_server_that_plans_few_rounds_and_asks_for_more_is_refused(
    site: Site, adapter: Adapter
) -> None:
    owned = with_policy(site, max_epsilon=50.0)
    few = {"planned_rounds": {"a": 1}}
    run_round(owned, adapter, task_for(adapter, **few))
    with pytest.raises(BudgetError, match="planned for 1 rounds"):
        run_round(owned, adapter, task_for(adapter, round=2, **few))


def test_policy_tightened_in_a_run_stops_it_at_the_next_round(site: Site, adapter: Adapter) -> None:
    run_round(with_policy(site), adapter, task_for(adapter))
    tight = with_policy(site, max_epsilon=1.0)
    # What was charged may be sent again; nothing new may be spent.
    run_round(tight, adapter, task_for(adapter))
    with pytest.raises(BudgetError, match="Nothing fits any more"):
        run_round(tight, adapter, task_for(adapter, round=2))


def test_capped_batches_are_in_the_event(site: Site, adapter: Adapter) -> None:
    training = TrainingConfig(steps_per_round=2, batch_size=5, max_batch_size=8)
    event = privacy_event(site, task_for(adapter, training=training))
    assert event is not None
    assert (event.max_batch_size, event.num_records) == (8, 20)
    free = privacy_event(site, task_for(adapter))
    assert free is not None
    assert (free.max_batch_size, free.num_records) == (None, None)
    assert event.noise_multiplier > free.noise_multiplier
    # A cap that cannot be reached costs nothing and is not in the event.
    unreached = training.model_copy(update={"max_batch_size": 20})
    assert privacy_event(site, task_for(adapter, training=unreached)) == free


def test_site_does_one_round_at_a_time(site: Site, adapter: Adapter) -> None:
    """The second of two that do the same round waits, and sends what the first one stored."""
    results: list[ClientResult] = []
    task = task_for(adapter)
    with site.alone():
        worker = Thread(target=lambda: results.append(run_round(site, adapter, task)))
        worker.start()
        worker.join(timeout=0.5)
        assert worker.is_alive()
        assert not site.ledger.path.exists()
    worker.join()
    assert run_round(site, adapter, task) == results[0]


def test_two_trainings_of_one_round_never_share_noise(site: Site, adapter: Adapter) -> None:
    task = task_for(adapter)
    one = run_round(site, adapter, task)
    for path in (site.folder / "updates").iterdir():
        path.unlink()
    site.ledger.path.unlink()
    adapter.load(decode(task.state, spec_of(adapter.state()), allowed=[state_chain(PAYLOAD)]))
    assert run_round(site, adapter, task).payload != one.payload


def test_without_dp_the_same_task_gives_the_same_bytes(site: Site, adapter: Adapter) -> None:
    task = task_for(adapter, privacy=NO_DP)
    one = run_round(site, adapter, task)
    for path in (site.folder / "updates").iterdir():
        path.unlink()
    assert run_round(site, adapter, task).payload == one.payload
    assert not site.ledger.path.exists()


def test_only_the_half_that_trains_moves_and_travels(site: Site, adapter: Adapter) -> None:
    before = adapter.state()
    half = {name: tensor for name, tensor in before.items() if ".lora_B." in name}
    state = encode(half, state_chain(PAYLOAD)).payload
    task = task_for(adapter, trains="B", state_part="B", state=state)
    result = run_round(site, adapter, task)
    update = decode(result.payload, spec_of(half), allowed=[update_chain(PAYLOAD)])
    assert all(bool(change.any()) for change in update.values())
    after = adapter.state()
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - half.keys())


def test_whole_state_where_half_is_meant_is_refused(site: Site, adapter: Adapter) -> None:
    with pytest.raises(WireError):
        run_round(site, adapter, task_for(adapter, trains="B", state_part="B"))


def test_local_part_that_is_not_noised_is_refused_under_dp(site: Site, adapter: Adapter) -> None:
    """The planted bug is FedSA's: B trains at the site and only A is clipped, noised and sent."""
    kept = next(name for name in adapter.parameters if ".lora_B." in name)
    local = adapter.parameters.pop(kept)
    assert local.requires_grad
    task = task_for(adapter)
    with pytest.raises(ValueError, match="no part of what is clipped and noised"):
        run_round(site, adapter, task)
    assert not (site.folder / "updates").exists()
    # Without DP nothing is claimed, so nothing is refused.
    run_round(site, adapter, task_for(adapter, privacy=NO_DP))


def test_frozen_half_that_moves_is_refused(
    site: Site, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = client_round.train_privately

    def moves_a(adapter: Adapter, *rest: Any) -> None:
        train(adapter, *rest)
        with torch.no_grad():
            next(p for name, p in adapter.parameters.items() if ".lora_A." in name).add_(1.0)

    monkeypatch.setattr(client_round, "train_privately", moves_a)
    with pytest.raises(ValueError, match="is frozen in this round and moved"):
        run_round(site, adapter, task_for(adapter, trains="B"))
    assert not (site.folder / "updates").exists()


def test_state_of_another_adapter_is_refused(site: Site, adapter: Adapter) -> None:
    wrong = {name: tensor[:1] for name, tensor in adapter.state().items()}
    task = task_for(adapter, state=encode(wrong, state_chain(PAYLOAD)).payload, privacy=NO_DP)
    with pytest.raises(WireError):
        run_round(site, adapter, task)


def test_only_the_latest_update_is_kept(site: Site, adapter: Adapter) -> None:
    for number in (1, 2):
        run_round(site, adapter, task_for(adapter, round=number))
    kept = sorted(path.name for path in (site.folder / "updates").iterdir())
    assert kept == ["run-2.json", "run-2.update"]


LARGE_STEPS = {
    "learning_rate": 1e8,
    "training": TrainingConfig(steps_per_round=1, batch_size=5, optimizer="sgd"),
}


@pytest.mark.parametrize("chain", ["float32+deflate", "top_k(keep_ratio=0.1)+int8"])
def test_dp_update_above_the_bound_becomes_an_empty_one_that_is_charged(
    site: Site, adapter: Adapter, chain: str
) -> None:
    """Its size must tell the server nothing: no refusal, no second try."""
    before, payload = adapter.state(), PayloadConfig(chain=chain)
    result = run_round(site, adapter, task_for(adapter, payload=payload, **LARGE_STEPS))
    moved = torch.cat([(after - before[n]).flatten() for n, after in adapter.state().items()])
    assert LARGEST_SENT < float(moved.abs().max()) < 1e9, "a finite change, not a broken one"
    update = decode(result.payload, spec_of(before), allowed=[update_chain(payload)])
    assert not any(bool(tensor.any()) for tensor in update.values())
    (entry,) = site.ledger.entries()
    assert entry.digest == result.digest


def test_update_above_the_bound_without_dp_is_an_error_and_stores_nothing(
    site: Site, adapter: Adapter
) -> None:
    steps = LARGE_STEPS | {"learning_rate": 1e9}
    task = task_for(adapter, privacy=NO_DP, **steps)
    with pytest.raises(ProtocolError, match=r"diverged in round 1: .* above 262144"):
        run_round(site, adapter, task)
    assert site.outbox.stored(task) is None
