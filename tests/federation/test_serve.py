"""The server's loop over its queue: however a job ends, its sites hear of it and it goes on."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import InvalidOperation
from pathlib import Path
from typing import Any

import pytest
from whole_server import Net, make_pki, running, tiny_job

from fedot.config import config_from_dict, to_yaml, with_overrides
from fedot.errors import ConfigError
from fedot.federation import serve
from fedot.federation.jobs import Job
from fedot.federation.results import run_id_of
from fedot.federation.serve import Server, Watcher
from fedot.journal import Journal
from fedot.transport.errors import Busy

RUN_ID = "run-that-has-begun"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_pki(folder)
    return folder


@pytest.fixture
def folder(keys: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(keys, tmp_path / "server"))


@pytest.fixture
def net(folder: Path) -> Iterator[Net]:
    with running(folder) as net:
        yield net


@dataclass
class Person:
    """Who watches a server."""

    said: list[str] = field(default_factory=list)
    on_progress: Callable[[str], None] = lambda stage: None

    def server(self, net: Net) -> Server:
        watcher = Watcher(
            self.said.append,
            lambda stage, done, total: self.on_progress(stage),
            lambda metrics: None,
            lambda out: None,
        )
        return Server(net.hub, net.queue, lambda message: b"", watcher)


@pytest.fixture
def person() -> Person:
    return Person()


def submitted(net: Net, name: str = "job") -> Job:
    return net.queue.submit(name, tiny_job(net.folder), "owner")


def begun(net: Net, *sites: str) -> Job:
    """A job that is running, with a run that sites are in; the server was started again since."""
    job = submitted(net)
    net.queue.next_queued()
    run = net.queue.run_folder(job.job_id)
    run.mkdir(parents=True)
    with Journal(run / "journal.sqlite") as journal:
        journal.note("run_id", RUN_ID)
        journal.note("sites", sites)
    assert run_id_of(run) == RUN_ID
    net.hub.board.expect(RUN_ID, sites)
    return job


def test_abort_that_a_killed_server_had_not_come_to_ends_the_run_for_its_sites(
    net: Net, person: Person
) -> None:
    job = begun(net, "a")
    net.queue.abort(job.job_id, "aborted by owner")
    assert not person.server(net).work(until_done=True)
    ended = net.queue.get(job.job_id)
    assert (ended.state, ended.reason) == ("aborted", "aborted by owner")
    assert net.hub.board.next_for("a", RUN_ID, 0).text == "aborted"
    assert not net.hub.board.is_expected(RUN_ID, "a")
    assert [line["facts"]["outcome"] for line in net.lines("run_ended")] == ["aborted"]
    net.queue.queue_again(job.job_id)
    net.queue.next_queued()
    assert net.queue.stop_reason(job.job_id) is None, "its resumed run is not aborted again"


def test_aborted_job_that_was_queued_again_ends_its_run_for_its_sites(net: Net) -> None:
    job = begun(net, "a")
    net.queue.finish(job.job_id, "failed", "why")
    net.queue.queue_again(job.job_id)
    assert net.hub.board.is_expected(RUN_ID, "a")
    assert net.hub.jobs.abort(job.job_id, "owner").state == "aborted"
    assert net.hub.board.next_for("a", RUN_ID, 0).text == "aborted"
    assert not net.hub.board.is_expected(RUN_ID, "a")


def test_abort_while_the_bundle_is_built_ends_the_job_at_once(
    net: Net, person: Person, tiny_config: dict[str, Any]
) -> None:
    config = config_from_dict(with_overrides(tiny_config, ["data.clients={}"]))
    job = net.queue.submit("job", to_yaml(config), "owner")
    stages: list[str] = []

    def abort(stage: str) -> None:
        stages.append(stage)
        if stage == "distil the emulator":
            net.queue.abort(job.job_id, "aborted by owner")

    person.on_progress = abort
    assert not person.server(net).work(until_done=True)
    assert net.queue.get(job.job_id).state == "aborted"
    assert stages.count("distil the emulator") == 1, "of four steps"
    assert not (net.queue.run_folder(job.job_id) / "bundle").exists()


class Bad(Exception):
    """Something that nobody has thought of."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("'w': values must be finite"), "internal error: ValueError"),
        (OverflowError("int too large"), "internal error: OverflowError"),
        (InvalidOperation("quantize"), "internal error: InvalidOperation"),
        (Bad("a record"), "internal error: Bad"),
        (sqlite3.OperationalError("no such column"), "internal error: OperationalError"),
        (FileNotFoundError(errno.ENOENT, "No such file", "model"), "cannot read or write model"),
        (ConfigError("the model is gone"), "the model is gone"),
    ],
)
def test_job_that_breaks_is_failed_and_the_next_one_is_done(
    net: Net,
    person: Person,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    words: str,
) -> None:
    job, other = begun(net, "a"), submitted(net, "other")

    def run(server: Server, asked: Job) -> None:
        if asked.job_id == job.job_id:
            raise error

    monkeypatch.setattr(Server, "_run", run)
    assert not person.server(net).work(until_done=True)
    ended = net.queue.get(job.job_id)
    assert ended.state == "failed"
    assert words in ended.reason
    assert "a record" not in ended.reason
    assert net.hub.board.next_for("a", RUN_ID, 0).text == "failed"
    assert net.queue.get(other.job_id).state == "done"
    logged = [record.exc_info for record in caplog.records if record.exc_info]
    assert bool(logged) != isinstance(error, ConfigError), "the log says where"


def full_database() -> sqlite3.Error:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), full_database(), Busy("try later", 1.0)],
)
def test_job_waits_for_a_disk_that_is_full_and_goes_on(
    net: Net, person: Person, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job, tries = begun(net, "a"), []

    def run(server: Server, asked: Job) -> None:
        tries.append(asked.job_id)
        assert net.queue.get(job.job_id).state == "running"
        if len(tries) < 3:
            raise error

    monkeypatch.setattr(Server, "_run", run)
    monkeypatch.setattr(serve, "_DISK_PAUSE_S", 0.01)
    assert person.server(net).work(until_done=True)
    assert tries == [job.job_id] * 3
    assert sum("disk fails" in line for line in person.said) == 2
    assert net.queue.get(job.job_id).state == "done"


def test_job_that_waits_for_the_disk_can_be_aborted(
    net: Net, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begun(net, "a")

    def run(server: Server, asked: Job) -> None:
        net.queue.abort(job.job_id, "aborted by owner")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Server, "_run", run)
    monkeypatch.setattr(serve, "_DISK_PAUSE_S", 0.01)
    assert not person.server(net).work(until_done=True)
    assert net.queue.get(job.job_id).state == "aborted"
    assert net.hub.board.next_for("a", RUN_ID, 0).text == "aborted"
