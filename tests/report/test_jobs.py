"""Jobs as people see them."""

from __future__ import annotations

from typing import Any

import pytest

from fedot.config import Config, config_from_dict
from fedot.report.jobs import cautions, job_rows
from fedot.transport import fedot_pb2 as pb


def config(unit: str, proxy: str | None) -> Config:
    raw: dict[str, Any] = {"model": {"path": "m"}, "data": {"proxy": proxy}}
    return config_from_dict({**raw, "privacy": {"unit": unit}})


@pytest.mark.parametrize(("unit", "word"), [("example", "spend their budgets"), ("none", "train")])
def test_a_job_that_will_measure_nothing_is_announced(unit: str, word: str) -> None:
    (line,) = cautions(config(unit, None))
    assert f"sites will {word} and nothing will be measured" in line
    assert "data.proxy" in line


def test_a_job_with_a_proxy_set_needs_no_caution() -> None:
    assert cautions(config("example", "proxy.jsonl")) == []


def test_a_moment_stays_in_one_piece_and_a_reason_takes_its_place() -> None:
    told = pb.Job(
        job_id="job-0123456789ab",
        name="t",
        state="done",
        submitted_by="owner",
        submitted_at="2026-11-21T12:47:47+02:00",
    )
    assert job_rows([told])[0][-1] == "owner, 2026-11-21 10:47 UTC"
    told.reason = "aborted by owner"
    assert job_rows([told])[0][-1] == "aborted by owner"
    told.reason, told.submitted_at = "", "some day"
    assert job_rows([told])[0][-1] == "owner, some day"
