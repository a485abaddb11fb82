"""What a round counts: a site's update and what it says of it are checked before they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedot.aggregation.server_optimizers import Moments, adam_step
from fedot.client.bounds import LARGEST_COUNTED
from fedot.client.chains import update_chain
from fedot.compression.codec import encode, spec_of
from fedot.compression.quantize import MAX_SENT
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.errors import ProtocolError
from fedot.federation.rounds import collect, from_journal, to_journal
from fedot.journal import Journal
from fedot.messages import ClientFailure, ClientResult, RoundTask, digest_of, no_progress

LIKE = {"w": torch.zeros(300)}
NO_DP = PrivacyConfig(unit="none")


def task_with(privacy: PrivacyConfig = NO_DP) -> RoundTask:
    return RoundTask(
        run_id="run",
        round=1,
        state=b"",
        learning_rate=1.0,
        training=TrainingConfig(),
        privacy=privacy,
        payload=PayloadConfig(chain="float32+deflate"),
        planned_rounds={},
    )


def result_of(site: str, update: dict[str, Tensor], epsilon: float | None = None) -> ClientResult:
    sent = encode(update, update_chain(task_with().payload))
    return ClientResult(
        client=site,
        round=1,
        payload=sent.payload,
        digest=digest_of(sent.payload),
        epsilon=epsilon,
        bytes_after=sent.bytes_after,
        received_bytes=0,
    )


class Answering:
    """An engine whose sites answer as they are told to."""

    def __init__(self, *results: ClientResult):
        self.results = {result.client: result for result in results}

    def clients(self) -> Sequence[Any]:
        return []

    def run(self, task: RoundTask, cohort: Sequence[str]) -> Iterator[ClientResult | ClientFailure]:
        yield from (self.results[name] for name in cohort)

    def cancel(self, task_id: str) -> None:
        raise NotImplementedError


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.close_round(0, b"start", {})
        yield journal


def failures(
    journal: Journal, *results: ClientResult, privacy: PrivacyConfig = NO_DP
) -> dict[str, str]:
    names = [result.client for result in results]
    spec = spec_of(LIKE)
    return collect(Answering(*results), journal, task_with(privacy), names, spec, no_progress)


@pytest.mark.parametrize("value", [LARGEST_COUNTED * 1.001, -1e6, 1e9, MAX_SENT])
def test_update_with_a_value_above_the_bound_is_its_sites_failure(
    journal: Journal, value: float
) -> None:
    large = {"w": LIKE["w"].clone()}
    large["w"][17] = value
    good = {"w": torch.full_like(LIKE["w"], -LARGEST_COUNTED)}
    failed = failures(journal, result_of("a", large), result_of("b", good))
    assert list(failed) == ["a"]
    assert "above 524288" in failed["a"]
    assert [update.client for update in journal.received(1)] == ["b"]


def test_all_sites_at_the_bound_in_every_round_leave_what_the_journal_takes() -> None:
    change = {"w": torch.full((3,), LARGEST_COUNTED, dtype=torch.float64)}
    moments = Moments.none()
    for _ in range(3000):
        _, moments = adam_step(change, moments, 1.0)
    for kept in (dict(moments.first), dict(moments.second)):
        assert torch.equal(from_journal(to_journal(kept), spec_of(kept))["w"], kept["w"])
    # The plain step at the highest rate, over as many rounds.
    to_journal({"w": (3000 * 10 * change["w"]).float()})


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"float32": 1},
        {"float32": 1, "int8": 1, "payload": 1},
        {"float32": 1, "deflate": 1, "payload": 1, "zstd": 1},
    ],
)
def test_numbers_of_another_chain_are_a_failure(journal: Journal, numbers: dict[str, int]) -> None:
    failed = failures(journal, replace(result_of("a", LIKE), bytes_after=numbers))
    assert "not of the run's chain" in failed["a"]
    assert not journal.received(1)


@pytest.mark.parametrize(
    ("unit", "epsilon", "words"),
    [
        ("none", 0.5, "comes with an epsilon"),
        ("client", 0.5, "comes with an epsilon"),
        ("example", None, "comes with no epsilon"),
        ("both", None, "comes with no epsilon"),
    ],
)
def test_epsilon_is_told_by_those_who_add_noise_and_by_nobody_else(
    journal: Journal, unit: Any, epsilon: float | None, words: str
) -> None:
    right = 0.5 if epsilon is None else None
    failed = failures(
        journal,
        result_of("a", LIKE, epsilon),
        result_of("b", LIKE, right),
        privacy=PrivacyConfig(unit=unit),
    )
    assert list(failed) == ["a"]
    assert words in failed["a"]


@pytest.mark.parametrize("value", [2 * MAX_SENT, float("inf"), float("nan")])
def test_state_that_cannot_be_kept_ends_the_run_with_what_to_do(value: float) -> None:
    with pytest.raises(ProtocolError, match=r"diverged\. Go back to an earlier round"):
        to_journal({"w": torch.tensor([0.0, value])})
