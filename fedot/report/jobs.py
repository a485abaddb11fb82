"""A server's jobs as tables and lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from fedot.report.formats import in_seconds, printable
from fedot.transport import fedot_pb2 as pb

__all__ = ["JOB_COLUMNS", "MEMBER_COLUMNS", "changes", "job_rows", "member_rows", "rounds_of"]

JOB_COLUMNS = (("job", 18), ("name", 20), ("state", 8), ("rounds", 8), ("what", None))
MEMBER_COLUMNS = (("site", 24), ("phase", 10), ("since", 10), ("what", None))


def job_rows(jobs: Iterable[pb.Job]) -> list[tuple[str, ...]]:
    """A row a job."""
    return [
        (
            job.job_id,
            printable(job.name),
            job.state,
            f"{job.round}/{job.rounds}",
            printable(job.reason) or f"by {printable(job.submitted_by)}, {job.submitted_at}",
        )
        for job in jobs
    ]


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
