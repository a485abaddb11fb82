"""The owner's calls about jobs, against a real server; what a hostile one could send as results."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from whole_server import Net, make_pki, running

from fedot.engines.remote_desk import RESULTS, RemoteDesk
from fedot.errors import ConfigError, ProtocolError, WireError
from fedot.journal import Journal
from fedot.messages import no_progress


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    (tmp_path / "server").mkdir()
    make_pki(tmp_path / "server")
    with running(tmp_path / "server") as net:
        yield net


@pytest.fixture
def desk(net: Net) -> Iterator[RemoteDesk]:
    with RemoteDesk.open(net.where, net.folder / "pki" / "owner.kit.json") as desk:
        yield desk


def config(**changes: Any) -> str:
    raw = {
        "model": {"path": "/model"},
        "data": {"owner_text": "/text.jsonl"},
        "emulator": "none",
        "adapter": {"blocks": "all"},
        "privacy": {"unit": "none"},
    }
    return json.dumps(raw | changes)


def finished(net: Net, desk: RemoteDesk, pack: Callable[[Path], object]) -> str:
    """A job that is done, with results of the test's making."""
    job_id = desk.submit("job", config()).job_id
    net.queue.next_queued()
    run = net.queue.run_folder(job_id)
    run.mkdir(parents=True)
    with Journal(run / "journal.sqlite") as journal:
        journal.note("run_id", "run-a")
    pack(run.with_name(RESULTS))
    net.queue.finish(job_id, "done")
    return job_id


def archive(*names: str) -> Callable[[Path], object]:
    def pack(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                packed.writestr(name, "content")

    return pack


def test_results_are_whole_at_out_and_nothing_else_is_left(
    net: Net, desk: RemoteDesk, tmp_path: Path
) -> None:
    job_id = finished(net, desk, archive("summary.json", "adapter/config.json"))
    desk.fetch(job_id, tmp_path / "new" / "out", no_progress)
    assert (tmp_path / "new" / "out" / "adapter" / "config.json").read_text() == "content"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", "a\\..\\b"])
def test_results_with_a_name_that_leads_outside_are_refused(
    net: Net, desk: RemoteDesk, tmp_path: Path, name: str
) -> None:
    job_id = finished(net, desk, archive("summary.json", name))
    with pytest.raises(WireError, match="lead outside"):
        desk.fetch(job_id, tmp_path / "out", no_progress)
    assert not (tmp_path / "out").exists()


def test_results_that_are_no_archive_are_refused(
    net: Net, desk: RemoteDesk, tmp_path: Path
) -> None:
    job_id = finished(net, desk, lambda path: path.write_bytes(b"PK not really"))
    with pytest.raises(WireError, match="no archive"):
        desk.fetch(job_id, tmp_path / "out", no_progress)


def test_results_larger_than_the_disk_are_not_unpacked(
    net: Net, desk: RemoteDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = finished(net, desk, archive("summary.json"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3))
    with pytest.raises(ConfigError, match="need 7 bytes and there is room for 3"):
        desk.fetch(job_id, tmp_path / "out", no_progress)


def test_job_that_is_not_done_has_no_results(desk: RemoteDesk, tmp_path: Path) -> None:
    job_id = desk.submit("job", config()).job_id
    with pytest.raises(ConfigError, match="is queued; only one that is done"):
        desk.fetch(job_id, tmp_path / "out", no_progress)


def test_following_ends_with_the_job(desk: RemoteDesk) -> None:
    job_id = desk.submit("job", config()).job_id
    states = [job.state for job in desk.follow(job_id, lambda seconds: desk.abort(job_id))]
    assert states == ["queued", "aborted"]


def test_reply_about_a_job_of_many_rounds_and_sites_stays_within_a_message(
    net: Net, desk: RemoteDesk
) -> None:
    job_id = desk.submit("job", config()).job_id
    run = net.queue.run_folder(job_id)
    run.mkdir(parents=True)
    epsilon = {f"a-site-with-a-long-name-{n}": 1.234 for n in range(100)}
    lines = [json.dumps({"round": n, "epsilon": epsilon}) for n in range(1000)]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    told = desk.show(job_id)
    assert told.round == 999
    assert json.loads(told.metrics_json[-1])["round"] == 999
    assert 10 < len(told.metrics_json) < 1000


def test_unknown_job_is_said_at_once(desk: RemoteDesk) -> None:
    for call in (desk.show, desk.abort, desk.resume):
        with pytest.raises(ProtocolError, match="no job of that id"):
            call("job-1")
