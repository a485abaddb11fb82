"""A server's jobs as tables and lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from fedot.config import Config
from fedot.report.formats import in_seconds, printable
from fedot.transport import fedot_pb2 as pb

__all__ = [
    "JOB_COLUMNS",
    "MEMBER_COLUMNS",
    "cautions",
    "changes",
    "job_rows",
    "member_rows",
    "rounds_of",
]

JOB_COLUMNS = (("job", 16), ("name", 14), ("state", 7), ("rounds", 7), ("by whom, or why", None))
MEMBER_COLUMNS = (("site", 24), ("phase", 10), ("since", 10), ("what", None))


def cautions(config: Config) -> list[str]:
    """What an owner should know of a job before it starts; empty where there is nothing."""
    if config.data.proxy is not None:
        return []
    spent = "spend their budgets" if config.privacy.protects_records else "train"
    return [
        f"! data.proxy is not set: sites will {spent} and nothing will be measured, so nobody will "
        "know what it brought. Name records of your own that stand in for the task (data.proxy, or "
        "fedot init --proxy)."
    ]


def job_rows(jobs: Iterable[pb.Job]) -> list[tuple[str, ...]]:
    """A row a job."""
    return [
        (
            job.job_id,
            printable(job.name),
            job.state,
            f"{job.round}/{job.rounds}",
            printable(job.reason) or f"{printable(job.submitted_by)}, {_minute(job.submitted_at)}",
        )
        for job in jobs
    ]


def _minute(moment: str) -> str:
    """A moment from its ISO form: "2026-11-21 10:47 UTC"."""
    try:
        return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return printable(moment)


def member_rows(job: pb.Job) -> list[tuple[str, ...]]:
    """A row a site."""
    return [
        (
            printable(each.site),
            each.phase,
            in_seconds(each.seconds_in_phase),
            "late" if each.is_late else printable(each.reason),
        )
        for each in job.members
    ]


def rounds_of(job: pb.Job) -> list[dict[str, Any]]:
    """Metrics of the closed rounds, the start apart."""
    lines = [json.loads(line) for line in job.metrics_json]
    return [line for line in lines if line["round"] > 0]


def changes(before: pb.Job | None, now: pb.Job) -> Iterator[str]:
    """What a person wants to know that was not so a moment ago."""
    if before is None or before.state != now.state:
        yield f"{now.job_id} is {now.state}" + (f": {printable(now.reason)}" if now.reason else "")
    known = {each.site: each for each in before.members} if before is not None else {}
    for each in now.members:
        old = known.get(each.site)
        if each.is_late and (old is None or not old.is_late):
            yield f"{printable(each.site)} is late"
        elif old is None or old.phase != each.phase:
            why = f": {printable(each.reason)}" if each.reason else ""
            yield f"{printable(each.site)}: {each.phase}{why}"
