"""The queue: one at a time, in order, and nothing that it said is lost with its process."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedot.config import config_from_yaml
from fedot.errors import ConfigError, ProtocolError
from fedot.federation.jobs import Job, JobQueue

CONFIG = "model: {path: m}\ndata: {proxy: proxy.jsonl}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def queue(path: Path) -> Iterator[JobQueue]:
    with JobQueue(path) as queue:
        yield queue


def submit(queue: JobQueue, name: str = "a job") -> Job:
    return queue.submit(name, CONFIG, by="owner")


def test_submitted_job_is_queued_with_its_config_resolved(queue: JobQueue, tmp_path: Path) -> None:
    job = submit(queue)
    assert (job.state, job.submitted_by, job.reason) == ("queued", "owner", "")
    assert job.submitted_at.endswith("+00:00")
    assert "learning_rate: 0.003" in job.config_yaml
    assert config_from_yaml(job.config_yaml) == config_from_yaml(CONFIG)
    assert queue.get(job.job_id) == job
    assert queue.run_folder(job.job_id) == tmp_path / "jobs" / job.job_id / "run"


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("", CONFIG, "1 to 200 printable characters"),
        ("a\nb", CONFIG, "printable"),
        ("x" * 201, CONFIG, "200"),
        ("a", "model: [", "not valid YAML"),
        ("a", "- 1", "must be a YAML mapping"),
        ("a", "!!python/object:os.system {}", "not valid YAML"),
        ("a", "[" * 5000, "not valid YAML"),
        ("a", CONFIG + "federation: {round: 3}", "no key federation.round"),
        ("a", CONFIG + "federation: {rounds: 0}", "federation.rounds is 0"),
    ],
)
def test_job_that_could_never_run_is_refused(
    queue: JobQueue, name: str, config: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        queue.submit(name, config, by="owner")
    assert queue.list() == ()


def test_jobs_run_one_at_a_time_in_the_order_they_came(queue: JobQueue) -> None:
    jobs = [submit(queue, f"job {n}") for n in range(3)]
    assert [job.job_id for job in queue.list()] == [job.job_id for job in jobs]
    for job in jobs:
        started = queue.next_queued()
        assert started is not None
        assert (started.job_id, started.state) == (job.job_id, "running")
        running = [each for each in queue.list() if each.state == "running"]
        assert len(running) == 1
        assert queue.finish(job.job_id, "done").state == "done"
    assert queue.next_queued() is None


def test_running_job_is_running_again_after_a_restart(path: Path) -> None:
    with JobQueue(path) as queue:
        first, second = submit(queue), submit(queue)
        queue.next_queued()
    with JobQueue(path) as queue:
        assert [job.state for job in queue.list()] == ["running", "queued"]
        again = queue.next_queued()
        assert again is not None
        assert again.job_id == first.job_id
        queue.finish(first.job_id, "failed", "no site came")
        after = queue.next_queued()
        assert after is not None
        assert after.job_id == second.job_id
        assert queue.get(first.job_id).reason == "no site came"


KILLED = """
import os, signal, sys
from pathlib import Path
from fedot.federation.jobs import JobQueue
queue = JobQueue(Path(sys.argv[1]))
job = queue.submit("killed", sys.argv[2], "owner")
queue.next_queued()
queue.request_roll_back(job.job_id, 2)
queue.abort(job.job_id, "the owner said so")
assert "torch" not in sys.modules
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_the_queue_said_outlives_sigkill_and_needs_no_torch(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), CONFIG], timeout=60)
    assert done.returncode == -signal.SIGKILL
    with JobQueue(path) as queue:
        (job,) = queue.list()
        assert job.state == "running"
        assert queue.wanted_roll_back(job.job_id) == 2
        assert queue.stop_reason(job.job_id) == "the owner said so"
        again = queue.next_queued()
        assert again is not None
        assert again.job_id == job.job_id, "the server has to tell its sites"
        assert queue.stop_reason(job.job_id) == "the owner said so"


def test_queued_job_is_aborted_at_once_and_a_running_one_is_asked(queue: JobQueue) -> None:
    running, waiting = submit(queue), submit(queue)
    queue.next_queued()
    assert queue.abort(waiting.job_id, "not now").state == "aborted"
    assert queue.abort(running.job_id, "enough").state == "running"
    assert queue.stop_reason(running.job_id) == "enough"
    assert queue.finish(running.job_id, "aborted", "enough").reason == "enough"
    assert queue.stop_reason(running.job_id) is None
    for job in (running, waiting):
        with pytest.raises(ProtocolError, match="is aborted"):
            queue.abort(job.job_id, "again")


@pytest.mark.parametrize("state", ["failed", "aborted"])
def test_ended_job_can_be_queued_again_and_is_not_stopped_by_its_old_abort(
    queue: JobQueue, state: str
) -> None:
    job = submit(queue)
    queue.next_queued()
    queue.abort(job.job_id, "enough")
    queue.finish(job.job_id, "failed" if state == "failed" else "aborted", "why")
    other = submit(queue)
    assert queue.queue_again(job.job_id).reason == ""
    started = queue.next_queued()
    assert started is not None
    assert started.job_id == job.job_id, "it keeps its place"
    assert queue.stop_reason(job.job_id) is None
    with pytest.raises(ProtocolError, match="is queued"):
        queue.queue_again(other.job_id)


def test_abort_that_an_older_fedot_left_does_not_stop_the_resumed_run(queue: JobQueue) -> None:
    job = submit(queue)
    queue._db.execute("UPDATE job SET state = 'aborted', abort_reason = 'enough'")
    queue.queue_again(job.job_id)
    assert queue.stop_reason(job.job_id) is None


def test_roll_back_stays_until_it_was_carried_out(queue: JobQueue) -> None:
    job = submit(queue)
    queue.next_queued()
    assert queue.wanted_roll_back(job.job_id) is None
    queue.request_roll_back(job.job_id, 3)
    assert queue.wanted_roll_back(job.job_id) == queue.wanted_roll_back(job.job_id) == 3
    queue.request_roll_back(job.job_id, 1)
    queue.take_roll_back(job.job_id, 3)
    assert queue.wanted_roll_back(job.job_id) == 1, "a later request is another one"
    queue.take_roll_back(job.job_id, 1)
    assert queue.wanted_roll_back(job.job_id) is None
    with pytest.raises(ProtocolError, match="round -1"):
        queue.request_roll_back(job.job_id, -1)
    queue.finish(job.job_id, "done")
    with pytest.raises(ProtocolError, match="is done"):
        queue.request_roll_back(job.job_id, 1)


def test_unknown_job_is_refused_everywhere(queue: JobQueue) -> None:
    for call in (
        lambda: queue.get("job-x"),
        lambda: queue.abort("job-x", "why"),
        lambda: queue.finish("job-x", "done"),
        lambda: queue.queue_again("job-x"),
        lambda: queue.request_roll_back("job-x", 1),
        lambda: queue.run_folder("../../etc"),
    ):
        with pytest.raises(ProtocolError, match="no job of that id"):
            call()


def test_only_a_running_job_can_be_finished(queue: JobQueue) -> None:
    job = submit(queue)
    with pytest.raises(ProtocolError, match="is queued"):
        queue.finish(job.job_id, "done")


def test_threads_share_a_queue_and_lose_nothing(queue: JobQueue) -> None:
    names = [f"{thread}-{n}" for thread in range(4) for n in range(10)]
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for n in range(10):
                job = submit(queue, f"{thread}-{n}")
                queue.list()
                queue.abort(job.job_id, "enough")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(job.name for job in queue.list()) == sorted(names)
    assert {job.state for job in queue.list()} == {"aborted"}


def test_file_that_is_no_queue_is_refused(path: Path) -> None:
    path.write_bytes(b"something else, long enough to be looked at" * 20)
    with pytest.raises(ConfigError, match="is no queue of jobs"):
        JobQueue(path)


def test_file_is_synced_before_it_answers(queue: JobQueue, path: Path) -> None:
    assert queue._db.execute("PRAGMA synchronous").fetchone() == (2,)
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
