"""Client-level DP in a run: stored before it is used, charged once, reported apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedot.compression.codec import spec_of
from fedot.config import Config, config_from_dict, with_overrides
from fedot.errors import BudgetError, ConfigError
from fedot.federation import server_noise as server_module
from fedot.federation.cohort import poisson_cohorts
from fedot.federation.estimate import estimate
from fedot.federation.rounds import from_journal
from fedot.federation.run import simulate
from fedot.federation.server_noise import ServerNoise, client_event
from fedot.journal import Journal
from fedot.messages import RoundTask
from fedot.models.adapters import load_adapter
from fedot.privacy.noise import NoiseSource
from fedot.report.page import write_report

CLIENT = ("privacy.unit=client", "federation.rounds=3")


def config_with(base: dict[str, Any], *overrides: str) -> Config:
    return config_from_dict(with_overrides(base, overrides))


def ledger_lines(run: Path, *folder: str) -> int:
    path = run.joinpath(*folder, "ledger.jsonl")
    return len(path.read_text().splitlines()) if path.exists() else 0


def states(run: Path) -> list[dict[str, Tensor]]:
    _, last = load_adapter(run / "adapter")
    with Journal(run / "journal.sqlite") as journal:
        closed = range(journal.last_closed() + 1)
        return [from_journal(journal.state(round), spec_of(last)) for round in closed]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("privacy.client_level.adaptive=true",),
        ("federation.cohort_size=1",),
        ("federation.cohort_size=2", "privacy.client_level.amplification=true"),
        ("adapter.freeze=A",),
        ("adapter.alternate=true",),
    ],
)
def test_server_ledger_holds_what_the_summary_says(
    tiny_config: dict[str, Any], out: Path, overrides: tuple[str, ...]
) -> None:
    config = config_with(tiny_config, *CLIENT, "privacy.client_level.target_epsilon=4", *overrides)
    summary = simulate(config, out)
    level = summary["privacy"]["client_level"]
    assert 3.9 < level["epsilon"] <= 4
    assert level["epsilon"] == pytest.approx(estimate(config).client_epsilon)
    assert summary["privacy"]["unit"] == "client"
    assert summary["privacy"]["epsilon"] is None, "no client added noise for a record"
    assert ledger_lines(out, "server") == 6
    assert ledger_lines(out, "sites", "client-0") == 0
    text = write_report(out).read_text(encoding="utf-8")
    assert "one client&#39;s whole data" in text
    assert level["assumes"].split(";")[0] in text


def test_both_units_are_reported_apart(tiny_config: dict[str, Any], out: Path) -> None:
    config = config_with(
        tiny_config, *CLIENT, "privacy.unit=both", "privacy.client_level.target_epsilon=3"
    )
    privacy = simulate(config, out)["privacy"]
    assert all(7 < spent <= 8 for spent in privacy["epsilon"].values())
    assert 2.9 < privacy["client_level"]["epsilon"] <= 3
    assert ledger_lines(out, "sites", "client-0") == ledger_lines(out, "server") == 6
    text = write_report(out).read_text(encoding="utf-8")
    assert "one client&#39;s whole data" in text
    assert "one record; delta" in text


def test_amplification_is_claimed_only_when_asked(tiny_config: dict[str, Any]) -> None:
    plain = config_with(tiny_config, *CLIENT, "federation.cohort_size=1")
    hidden = config_with(
        tiny_config,
        *CLIENT,
        "federation.cohort_size=1",
        "privacy.client_level.amplification=true",
    )
    assert client_event(plain).sampling_prob == 1.0
    assert client_event(hidden).sampling_prob == pytest.approx(1 / 3)
    assert client_event(hidden).noise_multiplier < client_event(plain).noise_multiplier


@pytest.mark.parametrize("unit", ["client", "both"])
def test_robust_rule_with_noise_at_the_server_is_refused(
    tiny_config: dict[str, Any], unit: str
) -> None:
    with pytest.raises(ConfigError, match="covers the mean of clipped updates"):
        config_with(
            tiny_config,
            f"privacy.unit={unit}",
            "federation.aggregation=trimmed_mean",
            "federation.num_trimmed=1",
        )


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.mark.parametrize(
    ("owner", "method"),
    [(ServerNoise, "_noised"), (server_module.Ledger, "charge"), (Journal, "close_round")],
)
def test_killed_round_is_released_with_one_noise_and_charged_once(
    tiny_config: dict[str, Any],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
) -> None:
    """Killed in round 2 before the noise, between store and charge, and before the end."""
    config = config_with(tiny_config, *CLIENT)
    original, calls = getattr(owner, method), 0
    first = 1 if method == "close_round" else 0  # the start is closed as round 0

    def second_time(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return killed() if calls == 2 + first else original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, second_time)
        with pytest.raises(Killed):
            simulate(config, out)
    with Journal(out / "journal.sqlite") as journal:
        stored = journal.fact("noised/2")
        assert journal.last_closed() == 1
        assert (stored is None) == (method == "_noised")
    drawn = 0

    def counting() -> NoiseSource:
        nonlocal drawn
        drawn += 1
        return NoiseSource.from_os()

    simulate(config, out, resume=True, make_noise=counting)
    assert drawn == (2 if stored is None else 1), "noise for open rounds that have none yet"
    assert ledger_lines(out, "server") == 6, "three reservations and three charges"
    with Journal(out / "journal.sqlite") as journal:
        held = journal.fact("noised/2")
        assert stored is None or held == stored
        all_states = states(out)
        change = from_journal(journal.payload(held["digest"]), spec_of(all_states[1]))
    for name, tensor in all_states[1].items():
        wanted = (tensor.double() + change[name].double()).float()
        assert torch.equal(all_states[2][name], wanted)


def test_finished_run_resumes_to_the_same_bits_without_new_noise(
    tiny_config: dict[str, Any], out: Path
) -> None:
    config = config_with(tiny_config, *CLIENT)
    one = simulate(config, out)
    before = states(out)
    two = simulate(config, out, resume=True, make_noise=killed)
    assert one["privacy"]["client_level"] == two["privacy"]["client_level"]
    for first, again in zip(before, states(out), strict=True):
        assert all(torch.equal(first[name], again[name]) for name in first)


def a_task(config: Config, round: int = 1) -> RoundTask:
    return RoundTask(
        run_id="run",
        round=round,
        state=b"",
        learning_rate=1.0,
        training=config.training,
        privacy=config.privacy,
        payload=config.payload,
        planned_rounds={},
    )


def test_empty_cohort_releases_noise_and_costs_a_round(
    tiny_config: dict[str, Any], out: Path
) -> None:
    config = config_with(tiny_config, *CLIENT)
    server = ServerNoise.of_run(config, out, NoiseSource.from_os)
    assert server is not None
    part = {"b": torch.zeros(3, 4), "a": torch.zeros(5)}
    with Journal(out / "journal.sqlite") as journal:
        task = a_task(config)
        server.reserve(task)
        change, told = server.release(journal, task, part, [])
        assert all(bool(tensor.all()) for tensor in change.values())
        assert {n: t.shape for n, t in change.items()} == {n: t.shape for n, t in part.items()}
        assert 0 < told["epsilon"] < 8
        again, _ = server.release(journal, task, part, [])
        assert all(torch.equal(change[name], again[name]) for name in change)


@pytest.mark.parametrize("num_answered", [1, 2])
def test_wiring_clips_whole_updates_and_divides_by_the_expected_number(
    tiny_config: dict[str, Any], out: Path, num_answered: int
) -> None:
    """Three are expected. Planted: dividing by who answered, clipping per tensor or not at all."""
    config = config_with(tiny_config, *CLIENT, "privacy.client_level.l2_clip_norm=0.5")
    server = ServerNoise.of_run(config, out, NoiseSource.from_os)
    assert server is not None
    # Almost no noise, so that what is left can be seen; nothing is claimed here.
    quiet = replace(server, event=replace(server.event, noise_multiplier=1e-9))
    server.reserve(a_task(config))
    part = {"b": torch.zeros(3, 4), "a": torch.zeros(5)}
    update = {name: torch.full_like(tensor, 7.0) for name, tensor in part.items()}
    with Journal(out / "journal.sqlite") as journal:
        change, _ = quiet.release(journal, a_task(config), part, [update] * num_answered)
    norm = float(torch.cat([tensor.flatten() for tensor in change.values()]).norm())
    assert norm == pytest.approx(num_answered * 0.5 / 3, rel=1e-6)


def test_noised_mean_that_no_journal_could_square_is_left_out_and_charged(
    tiny_config: dict[str, Any], out: Path
) -> None:
    """A refusal would be a release that nobody charged for, and be tried again."""
    config = config_with(tiny_config, *CLIENT, "privacy.client_level.l2_clip_norm=1e9")
    server = ServerNoise.of_run(config, out, NoiseSource.from_os)
    assert server is not None
    server.reserve(a_task(config))
    part = {"a": torch.zeros(50)}
    with Journal(out / "journal.sqlite") as journal:
        change, told = server.release(journal, a_task(config), part, [part])
        held = journal.fact("noised/1")
    assert not bool(change["a"].any())
    assert 0 < told["epsilon"] < 8
    (entry,) = server.ledger.entries()
    assert entry.digest == held["digest"]


def test_a_round_more_than_planned_is_refused(tiny_config: dict[str, Any], out: Path) -> None:
    config = config_with(tiny_config, *CLIENT)
    server = ServerNoise.of_run(config, out, NoiseSource.from_os)
    assert server is not None
    for round in (1, 2, 3):
        server.reserve(a_task(config, round))
    with pytest.raises(BudgetError, match="data set federation"):
        server.reserve(a_task(config, 4))


def test_bound_moves_on_from_round_to_round(tiny_config: dict[str, Any], out: Path) -> None:
    config = config_with(
        tiny_config,
        *CLIENT,
        "privacy.client_level.adaptive=true",
        "privacy.client_level.l2_clip_norm=1000",
        "privacy.client_level.target_epsilon=100",
    )
    simulate(config, out)
    with Journal(out / "journal.sqlite") as journal:
        held = [journal.fact(f"noised/{round}") for round in (1, 2, 3)]
    assert held[0]["l2_clip_norm"] == 1000
    assert [h["l2_clip_norm"] for h in held[1:]] == [h["next_clip_norm"] for h in held[:-1]]
    assert len({h["l2_clip_norm"] for h in held}) == 3


def test_cohorts_are_poisson() -> None:
    """Binomial: 3,000 coins of a third are 1,000 +- 26; six of those, false alarm 1e-8."""
    names = ["a", "b", "c"]
    cohorts = poisson_cohorts(1000, names, 1 / 3, NoiseSource(bytes(32)))
    drawn = sum(map(len, cohorts))
    assert abs(drawn - 1000) < 6 * 26
    assert {len(cohort) for cohort in cohorts} == {0, 1, 2, 3}
    assert all(list(cohort) == sorted(cohort) for cohort in cohorts)
