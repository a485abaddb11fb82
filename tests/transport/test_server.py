"""The whole server but the federation: real gRPC, real TLS, friendly and hostile callers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from whole_server import (
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

from fedot.transport import fedot_pb2 as pb
from fedot.transport.authorize import MAY, Asked
from fedot.transport.binding import Binding
from fedot.transport.frames import APPEND, DOWNLOAD, frame

Code = grpc.StatusCode


CONTROL = {
    "Hello": "hello",
    "Next": "next",
    "Report": "report",
    "Leave": "leave",
    "CreateUpload": "upload",
    "QueryUpload": "upload",
    "CommitUpload": "upload",
    "ListFiles": "download",
    "SubmitJob": "submit",
    "ListJobs": "list",
    "ShowJob": "show",
    "AbortJob": "abort",
    "ResumeJob": "resume",
    "RollBack": "roll_back",
}


@pytest.mark.parametrize(("name", "role"), [("owner", "owner"), ("a", "site"),
                                            ("auditor", "observer")])  # fmt: skip
def test_call_that_a_role_may_not_make_is_denied_and_written_down(
    net: Net, name: str, role: Any
) -> None:
    caller, num_denied = net.caller(name), 0
    calls = {method: (action, lambda m=method: caller.send(m, b""))
             for method, action in CONTROL.items()}  # fmt: skip
    calls["Append"] = ("upload", lambda: caller.append("x", UPDATE))
    calls["Download"] = ("download", lambda: caller.download(pb.Binding(), "state"))
    for method, (action, call) in calls.items():
        if (role, action) == ("owner", "download"):
            action = "fetch"
        code = Code.OK
        try:
            call()
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
        assert (code is Code.PERMISSION_DENIED) == (action not in MAY[role]), method
        num_denied += code is Code.PERMISSION_DENIED
    denied = [line for line in net.lines("refused") if "may not" in line["facts"]["why"]]
    assert [line["peer"] for line in denied] == [name] * num_denied
    assert num_denied


def test_stranger_is_not_let_in_whatever_it_asks(net: Net) -> None:
    a = net.caller("a")
    (net.folder / "pki" / "members.json").write_text('{"format": "fedot-members-1", "members": []}')
    for method in CONTROL:
        code, text = refused(lambda method=method: a.send(method, b"\xff"))
        assert code is Code.PERMISSION_DENIED
        assert "not admitted" in text
    assert refused(lambda: a.append("x", UPDATE))[0] is Code.PERMISSION_DENIED
    lines = net.lines("refused")
    assert lines
    assert not any(line["peer"] for line in lines)


def test_hook_refuses_by_run_and_by_what_a_job_would_do(folder: Path, tmp_path: Path) -> None:
    seen: list[Asked] = []

    def rules(asked: Asked) -> str | None:
        seen.append(asked)
        if asked.action in ("upload", "download") and asked.details.get("run_id") == RUN:
            return "not that run"
        if asked.action == "submit" and asked.details["privacy_unit"] == "none":
            return f"no DP for {asked.details['model']}"
        return None

    with running(folder, {"rules": rules}) as net:
        a, owner = net.caller("a"), net.caller("owner")
        bundle = net.open_run("a")
        net.post(1, "a")
        a.hello()
        for call in (
            lambda: a.upload(UPDATE),
            lambda: a.download(a.binding(bundle, 0), "manifest.json"),
            lambda: a.call("ListFiles", pb.FilesRequest(binding=a.binding(bundle, 0)),
                           pb.FilesReply),
        ):  # fmt: skip
            code, text = refused(call)
            assert code is Code.PERMISSION_DENIED
            assert text.endswith("rules refused: not that run")
        request = pb.SubmitRequest(name="job", config_yaml=tiny_job(tmp_path))
        code, text = refused(lambda: owner.call("SubmitJob", request, pb.Job))
        assert code is Code.PERMISSION_DENIED
        assert "no DP for" in text
        assert not net.queue.list()
        (asked,) = [each for each in seen if each.action == "submit"]
        assert {"name", "adapter", "chain", "rounds", "epsilon"} <= set(asked.details)
        assert len(net.lines("refused")) == 4


def test_hook_that_crashes_refuses_and_the_server_goes_on(folder: Path) -> None:
    def rules(asked: Asked) -> str | None:
        if asked.action == "hello":
            raise RuntimeError("a secret of ours")
        return None

    with running(folder, {"rules": rules}) as net:
        a = net.caller("a")
        code, text = refused(a.hello)
        assert code is Code.PERMISSION_DENIED
        assert "RuntimeError" in text
        assert "secret" not in text
        assert net.caller("owner").call("ListJobs", pb.JobRef(), pb.JobList).jobs == []


def test_append_is_refused_by_the_run_that_its_upload_belongs_to(folder: Path) -> None:
    banned: list[str] = []

    def rules(asked: Asked) -> str | None:
        return "stopped" if asked.details.get("run_id") in banned else None

    with running(folder, {"rules": rules}) as net:
        a = net.caller("a")
        a.hello()
        net.open_run("a")
        net.post(1, "a")
        status = a.create(a.binding(digest(UPDATE)), len(UPDATE))
        banned.append(RUN)
        assert refused(lambda: a.append(status.upload_id, UPDATE))[0] is Code.PERMISSION_DENIED


def test_revoked_site_is_out_at_its_next_call_and_while_it_waits(net: Net, a: Caller) -> None:
    net.open_run("a")
    told: list[tuple[grpc.StatusCode, str]] = []
    waiting = threading.Thread(
        target=lambda: told.append(refused(lambda: a.next(wait_s=PATIENCE_S)))
    )
    waiting.start()
    while not net.hub.board.present():
        waiting.join(0.02)
    net.hub.members.revoke("a")
    net.post(1, "a")
    waiting.join(PATIENCE_S)
    assert told[0][0] is Code.PERMISSION_DENIED
    code, text = refused(a.next)
    assert code is Code.PERMISSION_DENIED
    assert "revoked" in text


def test_open_upload_of_a_site_is_cut_off_when_it_is_revoked(net: Net, a: Caller) -> None:
    net.open_run("a")
    net.post(1, "a")
    content = bytes(2**16) * 2
    status = a.create(a.binding(digest(content)), len(content))
    over = threading.Event()

    def messages() -> Iterator[bytes]:
        yield frame(content[: 2**16])
        over.wait(PATIENCE_S)

    place = (("upload-id", status.upload_id), ("offset", "0"))
    stream = a.channel.stream_stream(APPEND)(messages(), metadata=place, timeout=PATIENCE_S)
    while not net.hub.uploads.query(
        status.upload_id, Binding.of(a.binding(digest(content)))
    ).committed_offset:
        over.wait(0.02)
    net.hub.members.revoke("a")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    over.set()
    assert caught.value.code() in (Code.CANCELLED, Code.PERMISSION_DENIED)  # type: ignore[attr-defined]


def test_site_acts_for_itself_only(net: Net, a: Caller, b: Caller) -> None:
    bundle = net.open_run("a", "b")
    state = net.post(1, "a", "b")
    mine = a.create(a.binding(digest(UPDATE)), len(UPDATE))
    a.append(mine.upload_id, UPDATE)
    for call in (
        lambda: b.create(b.binding(digest(UPDATE), site="a"), len(UPDATE)),
        lambda: b.append(mine.upload_id, UPDATE),
        lambda: b.commit(mine.upload_id, b.binding(digest(UPDATE), site="a")),
        # Replayed under its own name.
        lambda: b.commit(mine.upload_id, b.binding(digest(UPDATE))),
        lambda: b.download(b.binding(bundle, 0, site="a"), "manifest.json"),
        lambda: b.download(b.binding(state, 1, site="a"), "state"),
        lambda: b.call("ListFiles", pb.FilesRequest(binding=b.binding(bundle, 0, site="a")),
                       pb.FilesReply),
        lambda: b.call("QueryUpload", pb.UploadRef(upload_id=mine.upload_id,
                       binding=b.binding(digest(UPDATE))), pb.UploadStatus),
    ):  # fmt: skip
        assert refused(call)[0] is Code.PERMISSION_DENIED
    assert not net.hub.uploads.committed(RUN, 1)
    assert [line["peer"] for line in net.lines("refused")] == ["b"] * 8


def test_data_set_is_at_one_site_only_also_after_a_restart(folder: Path) -> None:
    with running(folder) as net:
        net.caller("a").hello("the-data")
    with running(folder) as net:
        code, text = refused(lambda: net.caller("b").hello("the-data"))
        assert code is Code.FAILED_PRECONDITION
        assert "another site's" in text
        net.caller("a").hello("the-data")


def test_data_set_of_a_revoked_name_can_come_back_under_another(net: Net, a: Caller) -> None:
    a.hello("the-data")
    b = net.caller("b")
    assert refused(lambda: b.hello("the-data"))[0] is Code.FAILED_PRECONDITION
    net.hub.members.revoke("a")
    b.hello("the-data")
    assert net.hub.book.dataset_of("b") == "the-data"
    assert net.hub.book.dataset_of("a") is None


def test_site_without_a_data_set_takes_no_part(net: Net) -> None:
    net.open_run("a")
    a = net.caller("a")
    code, text = refused(a.next)
    assert code is Code.FAILED_PRECONDITION
    assert "hello" in text
    assert a.next("", peek=True).WhichOneof("what") == "run_json"


def test_hello_says_how_long_the_certificate_lasts(net: Net, a: Caller) -> None:
    assert 89 < a.hello().certificate_days_left <= 90
    assert net.caller("auditor").hello("").role == "observer"


@pytest.mark.parametrize("dataset_id", ["", "x" * 201, "line\nfeed", "bell\a"])
def test_data_set_id_that_could_break_a_line_is_refused(net: Net, dataset_id: str) -> None:
    assert refused(lambda: net.caller("a").hello(dataset_id))[0] is Code.INVALID_ARGUMENT


def test_other_protocol_is_refused_with_both_versions(net: Net) -> None:
    request = pb.HelloRequest(protocol=7, dataset_id="d")
    code, text = refused(lambda: net.caller("a").call("Hello", request, pb.HelloReply))
    assert code is Code.INVALID_ARGUMENT
    assert "protocol 7, the server 1" in text


def test_unknown_method_does_not_exist(net: Net, a: Caller) -> None:
    for path in ("/fedot.v1.Federation/Shell", "/fedot.v1.Bulk/Delete", "/other/Hello"):
        code, _ = refused(lambda path=path: a.channel.unary_unary(path)(b"", timeout=PATIENCE_S))
        assert code is Code.UNIMPLEMENTED


@pytest.mark.parametrize("method", sorted(CONTROL))
def test_message_that_is_no_protobuf_is_refused_for_good(net: Net, method: str) -> None:
    name = "owner" if CONTROL[method] in MAY["owner"] - {"hello"} else "a"
    # A field of wire type 7, which does not exist; a text that is no UTF-8.
    for junk in (
        b"\xff\xff\xff",
        b"\x0a\x02\xc3\x28" if method != "Hello" else b"\x12\x02\xc3\x28",
    ):
        code, text = refused(lambda junk=junk: net.caller(name).send(method, junk))
        assert code is Code.INVALID_ARGUMENT
        assert "cannot be read" in text


def test_download_request_that_is_no_protobuf_is_refused_for_good(net: Net, a: Caller) -> None:
    call = a.channel.unary_stream(DOWNLOAD)
    assert refused(lambda: list(call(b"\xff\xff", timeout=PATIENCE_S)))[0] is Code.INVALID_ARGUMENT


def test_message_over_the_limit_is_not_taken(net: Net, a: Caller) -> None:
    code, _ = refused(lambda: a.send("Report", bytes(2**20)))
    assert code is Code.RESOURCE_EXHAUSTED
    assert a.hello().site == "a"


def test_phases_and_reasons_carry_no_control_characters(net: Net, a: Caller) -> None:
    net.open_run("a")
    net.post(1, "a")

    def report(phase: str, reason: str = "") -> Any:
        request = pb.ReportRequest(run_id=RUN, round=1, phase=phase, reason=reason)
        return a.call("Report", request, pb.ReportReply)

    for phase in ("", "train\n", "\x1b[2J", "dance"):
        assert refused(lambda phase=phase: report(phase))[0] is Code.INVALID_ARGUMENT
    assert refused(lambda: report("failed", "x" * 501))[0] is Code.INVALID_ARGUMENT
    report("failed", "no\x1b[31m budget\r\nerror: all is lost\u202e")
    (presence,) = net.hub.board.presences()
    assert presence.reason == "no[31m budgeterror: all is lost"


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[2J", "x" * 300])
def test_job_name_that_could_move_a_cursor_is_refused_with_the_reason(
    net: Net, tmp_path: Path, name: str
) -> None:
    request = pb.SubmitRequest(name=name, config_yaml=tiny_job(tmp_path))
    code, text = refused(lambda: net.caller("owner").call("SubmitJob", request, pb.Job))
    assert code is Code.FAILED_PRECONDITION
    assert "printable" in text


def test_owner_hears_what_is_wrong_with_a_config(net: Net) -> None:
    request = pb.SubmitRequest(name="job", config_yaml="model: 3")
    code, text = refused(lambda: net.caller("owner").call("SubmitJob", request, pb.Job))
    assert code is Code.FAILED_PRECONDITION
    assert "config lacks" in text
    request = pb.RollBackRequest(job_id="job-1", round=1)
    code, text = refused(lambda: net.caller("owner").call("RollBack", request, pb.Job))
    assert code is Code.FAILED_PRECONDITION
    assert "no job of that id" in text
