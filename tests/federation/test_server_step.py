"""The server's optimizer remembers over rounds and over restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedot.config import config_from_dict, with_overrides
from fedot.federation.run import simulate
from fedot.federation.server_step import server_step
from fedot.journal import Journal
from fedot.models.adapters import load_adapter

ADAM = (
    "federation.server_optimizer=adam",
    "federation.server_learning_rate=0.01",
    "training.optimizer=sgd",
    "training.learning_rate=1.0",
    "federation.rounds=3",
)


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("overrides", [(), ("adapter.alternate=true",), ("adapter.freeze=A",)])
def test_run_that_was_killed_before_a_round_closed_ends_in_the_same_bits(
    tiny_config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
) -> None:
    config = config_from_dict(with_overrides(tiny_config, (*ADAM, *overrides)))
    simulate(config, tmp_path / "whole")
    close = Journal.close_round

    def killed_in_third(self: Journal, round: int, *rest: Any) -> None:
        if round == 3:
            raise Stopped
        close(self, round, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "close_round", killed_in_third)
        with pytest.raises(Stopped):
            simulate(config, tmp_path / "cut")
    simulate(config, tmp_path / "cut", resume=True)
    whole, cut = (load_adapter(tmp_path / name / "adapter")[1] for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_second_round_knows_of_the_first(tmp_path: Path, tiny_config: dict[str, Any]) -> None:
    federation = config_from_dict(with_overrides(tiny_config, ADAM)).federation
    change = {"w": torch.tensor([1.0, 1.0], dtype=torch.float64)}
    other = {"w": torch.tensor([1.0, -1.0], dtype=torch.float64)}
    with Journal(tmp_path / "journal.sqlite") as journal:
        server_step(journal, federation, 1)(change)
        told = server_step(journal, federation, 2)(other)
        fresh = server_step(journal, federation, 9)(other)
    assert abs(float(told["w"][1])) < 0.1 * abs(float(fresh["w"][1]))
    assert float(told["w"][0]) == pytest.approx(0.01)
