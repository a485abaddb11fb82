"""The owner's calls about jobs: what is promised is carried out, the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedot.errors import ConfigError
from fedot.federation.job_desk import Desk
from fedot.federation.jobs import JobQueue
from fedot.transport.board import Board
from fedot.transport.shelf import Shelf

CONFIG = "model: {path: m}\ndata: {proxy: proxy.jsonl}\nfederation: {rounds: 3}\n"


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    with JobQueue(tmp_path / "jobs.sqlite") as queue:
        yield queue


def running_job(queue: JobQueue, closed: int) -> str:
    """A job of three rounds, of which some are closed and the next one is open."""
    job_id = queue.submit("job", CONFIG, "owner").job_id
    queue.next_queued()
    run = queue.run_folder(job_id)
    run.mkdir(parents=True)
    lines = (json.dumps({"round": round}) + "\n" for round in range(closed + 1))
    (run / "metrics.jsonl").write_text("".join(lines))
    return job_id


def desk_of(queue: JobQueue) -> Desk:
    return Desk(queue, Board(lambda *_: False), Shelf())


def test_job_that_has_a_round_left_after_the_open_one_goes_back(queue: JobQueue) -> None:
    job_id = running_job(queue, closed=1)
    desk_of(queue).roll_back(job_id, 0)
    assert queue.wanted_roll_back(job_id) == 0


def test_going_back_in_the_last_round_is_refused(queue: JobQueue) -> None:
    """Nobody would look at the request any more."""
    job_id = running_job(queue, closed=2)
    with pytest.raises(ConfigError, match="in its last round"):
        desk_of(queue).roll_back(job_id, 1)
    assert queue.wanted_roll_back(job_id) is None


@pytest.mark.parametrize("state", ["failed", "aborted"])
def test_job_that_ended_before_its_last_round_goes_back_when_it_is_resumed(
    queue: JobQueue, state: str
) -> None:
    job_id = running_job(queue, closed=2)
    queue.finish(job_id, "failed" if state == "failed" else "aborted", "why")
    desk_of(queue).roll_back(job_id, 1)
    queue.queue_again(job_id)
    assert queue.wanted_roll_back(job_id) == 1


@pytest.mark.parametrize(("closed", "round"), [(1, 2), (1, -1), (3, 4)])
def test_round_that_is_not_closed_is_refused(queue: JobQueue, closed: int, round: int) -> None:
    job_id = running_job(queue, closed)
    with pytest.raises(ConfigError, match="to one of its closed rounds"):
        desk_of(queue).roll_back(job_id, round)


def test_job_that_is_done_stays_as_it_is(queue: JobQueue) -> None:
    job_id = running_job(queue, closed=3)
    queue.finish(job_id, "done")
    with pytest.raises(ConfigError, match="is done"):
        desk_of(queue).roll_back(job_id, 1)
