"""The whole server but the federation: uploads, what may be downloaded, jobs, floods, metrics."""

from __future__ import annotations

import json
import threading
import zipfile
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from whole_server import (
    CARD,
    PATIENCE_S,
    RUN,
    UPDATE,
    Caller,
    Net,
    digest,
    refused,
    running,
    tiny_job,
)

from fedot.federation.jobs import JobQueue
from fedot.transport import fedot_pb2 as pb
from fedot.transport.authorize import Asked
from fedot.transport.limits import _MOST_OPEN_CALLS as MOST_OPEN
from fedot.transport.limits import Limits

Code = grpc.StatusCode


def test_upload_counts_once_and_is_written_down(net: Net, a: Caller) -> None:
    net.open_run("a")
    net.post(1, "a")
    for _ in range(2):
        assert a.upload(UPDATE).is_committed
    (committed,) = net.hub.uploads.committed(RUN, 1)
    assert committed.path.read_bytes() == UPDATE
    (line,) = net.lines("received")
    assert (line["facts"]["digest"], line["facts"]["num_bytes"]) == (digest(UPDATE), len(UPDATE))
    assert net.hub.board.next_event(0) is not None
    assert net.hub.board.next_event(0) is None
    assert a.next().WhichOneof("what") == "wait"


def test_hellos_without_end_do_not_fill_the_log(net: Net, a: Caller) -> None:
    num_calls = 100
    for _ in range(num_calls):
        a.hello()
    b = net.caller("b")
    b.hello()
    lines = net.lines("hello")
    of_a = [line for line in lines if line["peer"] == "a"]
    # The machine may be slow, and each second has two.
    assert len(of_a) < num_calls
    assert [line["peer"] for line in lines].count("b") == 1
    threading.Event().wait(0.6)
    a.hello()
    told = sum(
        1 + line["facts"].get("left_out", 0) for line in net.lines("hello") if line["peer"] == "a"
    )
    assert told == num_calls + 2


def test_second_different_update_of_a_round_is_a_conflict(net: Net, a: Caller) -> None:
    net.open_run("a")
    net.post(1, "a")
    a.upload(UPDATE)
    code, text = refused(lambda: a.upload(b"another"))
    assert code is Code.FAILED_PRECONDITION
    assert "the first one counts" in text
    (committed,) = net.hub.uploads.committed(RUN, 1)
    assert committed.digest == digest(UPDATE)


def test_upload_that_nobody_asked_for_is_refused_and_says_where_the_run_stands(
    net: Net, a: Caller, b: Caller
) -> None:
    assert refused(lambda: a.upload(UPDATE))[0] is Code.FAILED_PRECONDITION
    net.open_run("a", "b")
    net.post(2, "a")
    other = pb.Binding(run_id="run-b", round=2, site="a", digest=digest(UPDATE))
    for call in (
        lambda: a.upload(UPDATE, round=1),
        lambda: a.upload(UPDATE, round=3),
        lambda: b.upload(UPDATE, round=2),
        lambda: a.create(other, len(UPDATE)),
    ):
        code, text = refused(call)
        assert code is Code.FAILED_PRECONDITION
        assert "round 2 is open" in text


def test_upload_that_is_under_way_when_its_round_closes_does_not_count(net: Net, a: Caller) -> None:
    net.open_run("a")
    net.post(1, "a")
    binding = a.binding(digest(UPDATE))
    status = a.create(binding, len(UPDATE))
    a.append(status.upload_id, UPDATE)
    net.hub.board.retract()
    code, text = refused(lambda: a.commit(status.upload_id, binding))
    assert code is Code.FAILED_PRECONDITION
    assert "closed" in text
    assert not net.hub.uploads.committed(RUN, 1)
    net.hub.uploads.drop(RUN, 1)
    assert refused(lambda: a.append(status.upload_id, UPDATE))[0] is Code.NOT_FOUND


def test_wrong_digest_oversize_and_odd_metadata_are_refused(net: Net, a: Caller) -> None:
    net.open_run("a")
    net.post(1, "a")
    binding = a.binding(digest(b"something else"))
    status = a.create(binding, len(UPDATE))
    a.append(status.upload_id, UPDATE)
    assert refused(lambda: a.commit(status.upload_id, binding))[0] is Code.INVALID_ARGUMENT
    assert refused(lambda: a.create(binding, 2**40))[0] is Code.INVALID_ARGUMENT
    for card in ("", "[]", '{"epsilon": -1}', CARD.replace("null", "Infinity"), "x" * 2**17):
        request = pb.CreateUploadRequest(binding=binding, size=1, metadata_json=card)
        code, _ = refused(lambda r=request: a.call("CreateUpload", r, pb.UploadStatus))
        assert code is Code.INVALID_ARGUMENT
    assert a.upload(UPDATE).is_committed


def test_update_that_cannot_be_of_the_runs_adapter_is_refused_before_a_byte(
    net: Net, a: Caller
) -> None:
    net.open_run("a")
    net.post(1, "a", most_bytes=len(UPDATE))
    code, text = refused(lambda: a.create(a.binding(digest(UPDATE)), len(UPDATE) + 1))
    assert code is Code.INVALID_ARGUMENT
    assert f"more than {len(UPDATE)}" in text
    assert not list((net.folder / "uploads").glob("*.part"))
    assert a.upload(UPDATE).is_committed


@pytest.mark.parametrize("name", ["../keys/owner.key", "/etc/passwd", "a\0b", "", ".", "STATE"])
def test_names_are_looked_up_and_never_opened(net: Net, a: Caller, name: str) -> None:
    net.open_run("a")
    state = net.post(1, "a")
    assert a.download(a.binding(state), "state") == b"state"
    assert refused(lambda: a.download(a.binding(state), name))[0] is Code.INVALID_ARGUMENT


def test_flood_of_downloads_costs_a_line_for_each_that_begins_and_no_more(folder: Path) -> None:
    with running(folder, limits=Limits(max_calls_per_s=5, max_streams_per_site=1)) as net:
        a = net.caller("a")
        a.hello()
        net.open_run("a")
        state = net.post(1, "a")
        got = 0
        for _ in range(60):
            with suppress(grpc.RpcError):
                got += a.download(a.binding(state), "state") == b"state"
        assert 0 < got < 60
        assert len(net.lines("released")) == got


def test_what_is_not_there_is_not_released(net: Net, a: Caller) -> None:
    net.open_run("a")
    state = net.post(1, "a")
    assert refused(lambda: a.download(a.binding(state), "other"))[0] is Code.INVALID_ARGUMENT
    assert not net.lines("released")


def test_hooks_are_not_asked_of_a_flood_of_appends(folder: Path) -> None:
    asked: list[str] = []

    def rules(what: Asked) -> str | None:
        asked.append(what.action)
        return None

    with running(folder, {"rules": rules}, Limits(max_calls_per_s=5)) as net:
        a = net.caller("a")
        passed = 0
        for _ in range(60):
            passed += refused(lambda: a.append("no such", UPDATE))[0] is Code.NOT_FOUND
        assert 0 < passed < 60
        assert len(asked) == passed


def test_state_of_an_earlier_round_and_of_others_is_not_given(
    net: Net, a: Caller, b: Caller
) -> None:
    bundle = net.open_run("a", "b")
    first = net.post(1, "a", "b", state=b"first")
    assert a.download(a.binding(first), "state") == b"first"
    second = net.post(2, "a", state=b"second")
    for call in (
        lambda: a.download(a.binding(first, 1), "state"),
        lambda: a.download(a.binding(first, 2), "state"),
        lambda: a.download(a.binding(second, 1), "state"),
        # Not drawn in this round.
        lambda: b.download(b.binding(second, 2), "state"),
    ):
        assert refused(call)[0] is Code.FAILED_PRECONDITION
    assert a.download(a.binding(second, 2), "state") == b"second"
    assert b.download(b.binding(bundle, 0), "manifest.json") == b"manifest"
    assert len(net.lines("released")) == 3


def test_who_left_gets_nothing_any_more(net: Net, a: Caller) -> None:
    bundle = net.open_run("a")
    a.call("Leave", pb.LeaveRequest(run_id=RUN), pb.LeaveReply)
    assert a.next().over.outcome == "withdrawn"
    download = a.binding(bundle, 0)
    assert refused(lambda: a.download(download, "manifest.json"))[0] is Code.FAILED_PRECONDITION
    assert [line["peer"] for line in net.lines("left")] == ["a"]


def done_job(queue: JobQueue, tmp_path: Path) -> Any:
    job = queue.submit("job", tiny_job(tmp_path), "owner")
    queue.next_queued()
    run = queue.run_folder(job.job_id)
    run.mkdir(parents=True)
    with zipfile.ZipFile(run.with_name("results.zip"), "w") as archive:
        archive.writestr("summary.json", "{}")
    queue.finish(job.job_id, "done")
    return job


def test_results_are_for_the_owner_only(net: Net, tmp_path: Path, a: Caller) -> None:
    job = done_job(net.queue, tmp_path)
    owner, auditor = net.caller("owner"), net.caller("auditor")
    told = owner.call("ShowJob", pb.JobRef(job_id=job.job_id), pb.Job)
    seen = auditor.call("ShowJob", pb.JobRef(job_id=job.job_id), pb.Job)
    assert seen.results_digest == told.results_digest != ""

    def binding(site: str) -> Any:
        return pb.Binding(run_id="results", round=0, site=site, digest=told.results_digest)

    for caller in (auditor, a):
        code, _ = refused(lambda c=caller: c.download(binding(c.name), "results.zip"))
        assert code in (Code.PERMISSION_DENIED, Code.FAILED_PRECONDITION)
    request = pb.FilesRequest(binding=binding("owner"))
    (file,) = owner.call("ListFiles", request, pb.FilesReply).files
    assert file.name == "results.zip"
    assert digest(owner.download(binding("owner"), file.name)) == file.sha256 == told.results_digest
    assert [line["peer"] for line in net.lines("fetched")] == ["owner"]


def test_job_is_aborted_and_taken_up_again_by_the_owner(net: Net, tmp_path: Path) -> None:
    owner = net.caller("owner")
    request = pb.SubmitRequest(name="job", config_yaml=tiny_job(tmp_path))
    job = pb.JobRef(job_id=owner.call("SubmitJob", request, pb.Job).job_id)
    assert refused(lambda: owner.call("ResumeJob", job, pb.Job))[0] is Code.FAILED_PRECONDITION
    aborted = owner.call("AbortJob", job, pb.Job)
    assert (aborted.state, aborted.reason) == ("aborted", "aborted by owner")
    assert owner.call("ResumeJob", job, pb.Job).state == "queued"
    assert len(net.lines("submitted")) == len(net.lines("aborted")) == 1


def test_flood_of_refused_calls_neither_fills_the_log_nor_hides_others(net: Net) -> None:
    a, auditor = net.caller("a"), net.caller("auditor")
    for _ in range(200):
        refused(lambda: a.send("ListJobs", b""))
    refused(lambda: auditor.send("Next", b""))
    peers = [line["peer"] for line in net.lines("refused")]
    assert 20 <= peers.count("a") < 100
    assert peers.count("auditor") == 1
    assert counted(net)['fedot_refused_calls_total{reason="role"}'] == 201


def test_one_site_cannot_call_more_often_than_it_may(folder: Path) -> None:
    with running(folder, limits=Limits(max_calls_per_s=2)) as net:
        a, b = net.caller("a"), net.caller("b")
        codes = set()
        for _ in range(20):
            try:
                a.hello()
            except grpc.RpcError as error:
                codes.add(error.code())  # type: ignore[attr-defined]
        assert codes == {Code.RESOURCE_EXHAUSTED}
        b.hello()
        assert not net.lines("refused")


def test_waiting_calls_of_one_site_hold_one_thread(net: Net, a: Caller, b: Caller) -> None:
    net.open_run("a", "b")
    call = a.channel.unary_unary("/fedot.v1.Federation/Next")
    message = pb.NextRequest(run_id=RUN, wait_s=PATIENCE_S).SerializeToString()
    waiting = [call.future(message, timeout=2 * PATIENCE_S) for _ in range(MOST_OPEN)]
    # All but the last one are answered at once, and that one by the task.
    while sum(each.done() for each in waiting) < MOST_OPEN - 1:
        threading.Event().wait(0.02)
    net.post(1, "a")
    answers = [pb.NextReply.FromString(each.result()).WhichOneof("what") for each in waiting]
    assert sorted(answers) == ["task_json", *["wait"] * (MOST_OPEN - 1)]
    assert b.next().WhichOneof("what") == "wait"


def http(net: Net, path: str) -> str:
    connection = HTTPConnection("127.0.0.1", net.hub.telemetry.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def counted(net: Net) -> dict[str, float]:
    rows = [line.rsplit(" ", 1) for line in http(net, "/metrics").splitlines() if line[:1] != "#"]
    return {name: float(value) for name, value in rows}


def test_metrics_and_health_show_what_happened(net: Net, a: Caller) -> None:
    net.open_run("a")
    state = net.post(1, "a")
    a.next()
    a.download(a.binding(state), "state")
    a.upload(UPDATE)
    refused(lambda: a.upload(b"another"))
    refused(lambda: a.send("Hello", b"\xff\xff"))
    shown = counted(net)
    assert shown['fedot_received_bytes_total{site="a"}'] == len(UPDATE)
    assert shown['fedot_sent_bytes_total{site="a"}'] == len(b"state")
    assert shown['fedot_uploads_total{site="a"}'] == 1
    assert shown['fedot_downloads_total{site="a"}'] == 1
    assert shown['fedot_refused_calls_total{reason="state"}'] == 1
    assert shown['fedot_refused_calls_total{reason="wire"}'] == 1
    assert json.loads(http(net, "/healthz")) == {"sites": 1}


def test_server_stops_while_sites_wait_and_lets_go_of_its_port(folder: Path) -> None:
    with running(folder) as net:
        a = net.caller("a")
        a.hello()
        net.open_run("a")
        call = a.channel.unary_unary("/fedot.v1.Federation/Next")
        message = pb.NextRequest(run_id=RUN, wait_s=60).SerializeToString()
        waiting = call.future(message, timeout=2 * PATIENCE_S)
        while not net.hub.board.present():
            threading.Event().wait(0.02)
        where = net.where
    assert waiting.done() or waiting.exception(timeout=PATIENCE_S) is not None
    assert not [each for each in threading.enumerate() if each.name.startswith("fedot-call")]
    with grpc.insecure_channel(where) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/x/y")(b"", timeout=2)
