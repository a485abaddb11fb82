"""The server's optimizer remembers over rounds and over restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedot.config import config_from_dict, with_overrides
from fedot.federation.run import simulate
from fedot.federation.server_step import decay, server_step
from fedot.federation.tasks import learning_rate
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


def test_rate_decays_at_the_server_where_adam_is_and_at_clients_otherwise(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    adam = config_from_dict(with_overrides(tiny_config, ADAM))
    assert [decay(adam, r) for r in (1, 2, 3)] == pytest.approx([1, 0.55, 0.1])
    change = {"w": torch.ones(1, dtype=torch.float64)}
    with Journal(tmp_path / "journal.sqlite") as journal:
        moved = [float(server_step(journal, adam, r)(change)["w"]) for r in (1, 2, 3)]
    assert moved == pytest.approx([0.01, 0.0055, 0.001])
    assert learning_rate(adam, 3) == 1.0
    plain = config_from_dict(with_overrides(tiny_config, (*ADAM, ADAM[0].replace("adam", "sgd"))))
    assert learning_rate(plain, 3) == pytest.approx(0.1)


def test_second_round_knows_of_the_first(tmp_path: Path, tiny_config: dict[str, Any]) -> None:
    config = config_from_dict(with_overrides(tiny_config, (*ADAM, "training.final_lr_ratio=1")))
    change = {"w": torch.tensor([1.0, 1.0], dtype=torch.float64)}
    other = {"w": torch.tensor([1.0, -1.0], dtype=torch.float64)}
    with Journal(tmp_path / "journal.sqlite") as journal:
        server_step(journal, config, 1)(change)
        told = server_step(journal, config, 2)(other)
        fresh = server_step(journal, config, 9)(other)
    assert abs(float(told["w"][1])) < 0.1 * abs(float(fresh["w"][1]))
    assert float(told["w"][0]) == pytest.approx(0.01)
