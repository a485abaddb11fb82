"""Answers the owner's calls about jobs: from the queue, the board and the runs' folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedot.config import config_from_yaml
from fedot.engines.remote_desk import RESULTS
from fedot.errors import ConfigError
from fedot.federation.jobs import Job, JobQueue
from fedot.federation.results import results_digest, run_id_of
from fedot.transport import fedot_pb2 as pb
from fedot.transport.board import Board
from fedot.transport.options import MESSAGE_ROOM
from fedot.transport.shelf import Shelf

__all__ = ["Desk"]

# Half of what a message has room for beside a chunk, whatever chunks the server's limits allow.
_MOST_METRICS_BYTES = MESSAGE_ROOM // 2


class Desk:
    """A `JobDesk`.

    Args:
        queue: the jobs.
        board: who is in.
        shelf: where results are offered.
    """

    def __init__(self, queue: JobQueue, board: Board, shelf: Shelf) -> None:
        self._queue = queue
        self._board = board
        self._shelf = shelf
        # An archive that is there never changes, and is too large to be read at every call.
        self._digests: dict[str, str] = {}

    def submit(self, name: str, config_yaml: str, by: str) -> pb.Job:
        """Queue a job."""
        return self._told(self._queue.submit(name, config_yaml, by))

    def jobs(self) -> list[pb.Job]:
        """All jobs, oldest first."""
        return [self._told(job) for job in self._queue.list()]

    def show(self, job_id: str) -> pb.Job:
        """One job, with everything about it."""
        job = self._queue.get(job_id)
        told = self._told(job)
        told.config_yaml = job.config_yaml
        told.metrics_json.extend(_newest(self._metrics(job)))
        if job.state == "running":
            told.members.extend(
                pb.Member(
                    site=each.site,
                    phase=each.phase,
                    seconds_in_phase=each.since,
                    is_late=each.is_late,
                    reason=each.reason,
                )
                for each in self._board.presences()
            )
        return told

    def abort(self, job_id: str, by: str) -> pb.Job:
        """Stop a job, or take it out of the queue."""
        job = self._queue.abort(job_id, f"aborted by {by}")
        run_id = run_id_of(self._queue.run_folder(job_id))
        if job.state == "aborted" and run_id is not None:
            # It was to go on with a run that it had begun, and sites may wait for that.
            self._board.close_run(run_id, job.state)
        self._board.wake()
        return self._told(job)

    def resume(self, job_id: str) -> pb.Job:
        """Queue a job again that failed or was aborted; its run goes on where it stopped."""
        return self._told(self._queue.queue_again(job_id))

    def roll_back(self, job_id: str, round: int) -> pb.Job:
        """Go back to the state after an earlier round, before the next one starts.

        A job that has failed or was aborted goes back when it is resumed.
        """
        job = self._queue.get(job_id)
        closed = len(self._metrics(job)) - 1
        if job.state == "done" or not 0 <= round <= closed:
            raise ConfigError(
                f"job {job_id} is {job.state} and has closed {max(0, closed)} rounds; a job that "
                "is not done can go back, to one of its closed rounds (0 is the start)."
            )
        # Going back takes the place of a round, and the one that is open has begun.
        begun = closed + 1 if job.state == "running" else closed
        if begun >= config_from_yaml(job.config_yaml).federation.rounds:
            raise ConfigError(
                f"job {job_id} is in its last round, and none comes after it that could go back. "
                "Let it end: adapter-best is its best round; or abort it, and go back before it "
                "is resumed."
            )
        self._queue.request_roll_back(job_id, round)
        return self._told(job)

    def _told(self, job: Job) -> pb.Job:
        lines = self._metrics(job)
        return pb.Job(
            job_id=job.job_id,
            name=job.name,
            state=job.state,
            submitted_by=job.submitted_by,
            submitted_at=job.submitted_at,
            reason=job.reason,
            round=int(lines[-1]["round"]) if lines else 0,
            rounds=config_from_yaml(job.config_yaml).federation.rounds,
            run_id=run_id_of(self._queue.run_folder(job.job_id)) or "",
            results_digest=self._results(job),
        )

    def _results(self, job: Job) -> str:
        path = self._queue.run_folder(job.job_id).with_name(RESULTS)
        if job.state != "done" or not path.exists():
            return ""
        if job.job_id not in self._digests:
            digest = results_digest(path)
            self._shelf.put(digest, {RESULTS: path}, {RESULTS: digest})
            self._digests[job.job_id] = digest
        return self._digests[job.job_id]

    def _metrics(self, job: Job) -> list[dict[str, Any]]:
        path = self._queue.run_folder(job.job_id) / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _newest(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """The last rounds' lines, as many as go into one reply."""
    lines: list[str] = []
    room = _MOST_METRICS_BYTES
    for line in map(json.dumps, reversed(metrics)):
        room -= len(line)
        if room < 0:
            break
        lines.append(line)
    return lines[::-1]
