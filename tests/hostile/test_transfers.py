"""Sites that do not keep to the rules: each is refused or cut off, and others do not notice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from bulk_server import BulkServer

from fedot.transport import fedot_pb2 as wire
from fedot.transport.binding import Binding
from fedot.transport.frames import APPEND, DOWNLOAD, frame, place_metadata
from fedot.transport.limits import Limits

PAYLOAD = bytes(range(256)) * 1024
DIGEST = sha256(PAYLOAD).hexdigest()
PATIENCE_S = 20.0
Code = grpc.StatusCode


@pytest.fixture
def server(parties: Path, tmp_path: Path) -> Iterator[BulkServer]:
    limits = Limits(max_calls_per_s=1000, stall_timeout_s=1.0, max_streams_per_site=3)
    with BulkServer(parties, tmp_path / "store", limits) as started:
        yield started


@pytest.fixture
def raw(server: BulkServer) -> Iterator[grpc.Channel]:
    """A channel of hospital-a without any of our own client code."""
    credentials = server.credentials("hospital-a")
    with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
        yield channel


def binding(site: str = "hospital-a", round: int = 1, digest: str = DIGEST) -> Binding:
    return Binding("run", round, site, digest)


def create(raw: grpc.Channel, what: Binding | None = None, size: int = len(PAYLOAD)) -> str:
    request = wire.CreateUploadRequest(binding=(what or binding()).message(), size=size)
    call = raw.unary_unary("/fedot.v1.Federation/CreateUpload")
    answer = call(request.SerializeToString(), timeout=PATIENCE_S)
    return wire.UploadStatus.FromString(answer).upload_id


def append(raw: grpc.Channel, upload_id: str, offset: int, messages: Iterator[bytes]) -> list[int]:
    call = raw.stream_stream(APPEND)(
        messages, metadata=place_metadata(upload_id, offset), timeout=PATIENCE_S
    )
    return [int.from_bytes(answer, "big") for answer in call]


def download(raw: grpc.Channel, what: Binding, name: str, offset: int = 0) -> Iterator[bytes]:
    request = wire.DownloadRequest(binding=what.message(), name=name, offset=offset)
    call: Iterator[bytes] = raw.unary_stream(DOWNLOAD)(
        request.SerializeToString(), timeout=PATIENCE_S
    )
    return call


@contextmanager
def refused(*codes: grpc.StatusCode) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as error:
        yield
    assert error.value.code() in codes, error.value.details()


def offset_of(server: BulkServer, upload_id: str) -> int:
    return server.store.query(upload_id, server.store.owner(upload_id)).committed_offset


def test_an_upload_id_is_of_no_use_to_another_certificate(
    server: BulkServer, raw: grpc.Channel
) -> None:
    upload_id = create(raw)
    thief = server.credentials("hospital-b")
    with grpc.secure_channel(f"127.0.0.1:{server.port}", thief) as channel:
        with refused(Code.PERMISSION_DENIED):
            append(channel, upload_id, 0, iter([frame(PAYLOAD)]))
        ref = wire.UploadRef(upload_id=upload_id, binding=binding().message())
        with refused(Code.PERMISSION_DENIED):
            channel.unary_unary("/fedot.v1.Federation/CommitUpload")(
                ref.SerializeToString(), timeout=PATIENCE_S
            )
        # Under its own name neither.
        own = wire.UploadRef(upload_id=upload_id, binding=binding("hospital-b").message())
        with refused(Code.PERMISSION_DENIED):
            channel.unary_unary("/fedot.v1.Federation/CommitUpload")(
                own.SerializeToString(), timeout=PATIENCE_S
            )
    assert offset_of(server, upload_id) == 0


def test_a_site_cannot_create_an_upload_for_another(raw: grpc.Channel) -> None:
    with refused(Code.PERMISSION_DENIED):
        create(raw, binding("hospital-b"))


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((), Code.INVALID_ARGUMENT),
        ((("upload-id", "x"),), Code.INVALID_ARGUMENT),
        ((("upload-id", "x"), ("offset", "-1")), Code.INVALID_ARGUMENT),
        ((("upload-id", "x"), ("offset", "1e3")), Code.INVALID_ARGUMENT),
        ((("upload-id", "x"), ("offset", "9" * 40)), Code.INVALID_ARGUMENT),
        ((("upload-id", "x"), ("upload-id", "y"), ("offset", "0")), Code.INVALID_ARGUMENT),
        ((("upload-id", "../../etc/passwd"), ("offset", "0")), Code.NOT_FOUND),
    ],
)
def test_a_strange_place_is_refused(
    raw: grpc.Channel, metadata: tuple[tuple[str, str], ...], code: grpc.StatusCode
) -> None:
    with refused(code):
        list(raw.stream_stream(APPEND)(iter([]), metadata=metadata, timeout=PATIENCE_S))


def test_offsets_out_of_order_overlapping_or_twice_write_nothing(
    server: BulkServer, raw: grpc.Channel
) -> None:
    upload_id = create(raw)
    append(raw, upload_id, 0, iter([frame(PAYLOAD[:1000])]))
    for offset in (0, 500, 999, 1001, 5000):
        with refused(Code.ABORTED):
            append(raw, upload_id, offset, iter([frame(b"x" * 100)]))
    append(raw, upload_id, 1000, iter([frame(PAYLOAD[1000:])]))
    assert server.store.commit(upload_id, binding()).is_committed


def test_a_damaged_chunk_is_not_written(server: BulkServer, raw: grpc.Channel) -> None:
    upload_id = create(raw)
    damaged = bytearray(frame(PAYLOAD[1000:2000]))
    damaged[-1] ^= 1
    with refused(Code.ABORTED):
        append(raw, upload_id, 0, iter([frame(PAYLOAD[:1000]), bytes(damaged)]))
    assert offset_of(server, upload_id) == 1000


@pytest.mark.parametrize("message", [b"", b"abc", b"\0\0\0\0", frame(b"x" * (2**20 + 1))])
def test_messages_of_a_wrong_size_are_refused(
    server: BulkServer, raw: grpc.Channel, message: bytes
) -> None:
    upload_id = create(raw, size=2**22)
    with refused(Code.INVALID_ARGUMENT):
        append(raw, upload_id, 0, iter([message]))
    assert offset_of(server, upload_id) == 0


def test_a_message_far_too_large_never_reaches_us(server: BulkServer, raw: grpc.Channel) -> None:
    upload_id = create(raw, size=2**24)
    with refused(Code.RESOURCE_EXHAUSTED):
        append(raw, upload_id, 0, iter([frame(bytes(3 * 2**20))]))
    assert server.counts.in_bytes == 0


def test_more_bytes_than_announced_are_refused(server: BulkServer, raw: grpc.Channel) -> None:
    upload_id = create(raw, size=1500)
    with refused(Code.INVALID_ARGUMENT):
        append(raw, upload_id, 0, iter([frame(PAYLOAD[:1000])] * 1000))
    assert offset_of(server, upload_id) == 1000


def test_a_wrong_digest_is_not_kept(server: BulkServer, raw: grpc.Channel) -> None:
    upload_id = create(raw)
    append(raw, upload_id, 0, iter([frame(bytes(len(PAYLOAD)))]))
    ref = wire.UploadRef(upload_id=upload_id, binding=binding().message())
    commit = raw.unary_unary("/fedot.v1.Federation/CommitUpload")
    with refused(Code.INVALID_ARGUMENT):
        commit(ref.SerializeToString(), timeout=PATIENCE_S)
    assert not server.store.committed("run", 1)


@pytest.mark.parametrize(
    "name", ["../store/uploads.sqlite", "/etc/passwd", "offered\0", "..", "", "offered/../offered"]
)
def test_names_never_reach_the_file_system(
    server: BulkServer, raw: grpc.Channel, tmp_path: Path, name: str
) -> None:
    (tmp_path / "offered").write_bytes(PAYLOAD)
    server.shelf.put(DIGEST, {"offered": tmp_path / "offered"})
    with refused(Code.INVALID_ARGUMENT):
        list(download(raw, binding(round=0), name))


@pytest.mark.parametrize(
    "parts",
    [
        {"run_id": "../run"},
        {"run_id": ""},
        {"digest": "A" * 64},
        {"digest": "../" + "0" * 61},
        {"run_id": "run\n"},
    ],
)
def test_bindings_that_could_be_paths_are_refused(raw: grpc.Channel, parts: dict[str, str]) -> None:
    message = wire.Binding(
        **{"run_id": "run", "round": 1, "site": "hospital-a", "digest": DIGEST, **parts}
    )
    request = wire.CreateUploadRequest(binding=message, size=1)
    with refused(Code.INVALID_ARGUMENT):
        raw.unary_unary("/fedot.v1.Federation/CreateUpload")(
            request.SerializeToString(), timeout=PATIENCE_S
        )


def test_a_download_request_of_noise_is_refused(raw: grpc.Channel) -> None:
    with refused(Code.INVALID_ARGUMENT):
        list(raw.unary_stream(DOWNLOAD)(b"\xff\xff\xff", timeout=PATIENCE_S))


def _honest_upload(server: BulkServer) -> None:
    """Another site's transfer, which must go on whatever the first one does."""
    payload = PAYLOAD * 4
    what = binding("hospital-b", 2, sha256(payload).hexdigest())
    with server.channel("hospital-b") as channel:
        assert channel.upload(what, payload).is_committed


def _wait_until_free(server: BulkServer) -> None:
    """Until no transfer of hospital-a is open."""
    tick, most = threading.Event(), int(PATIENCE_S / 0.1)
    for _ in range(most):
        if not server.gate.open_streams("hospital-a"):
            return
        tick.wait(0.1)
    raise AssertionError("a transfer that does not move is still open")


def test_a_site_that_sends_one_byte_and_then_nothing_is_cut_off(
    server: BulkServer, raw: grpc.Channel
) -> None:
    upload_id, over = create(raw), threading.Event()

    def dribble() -> Iterator[bytes]:
        yield frame(b"\0")
        over.wait(PATIENCE_S)

    call = raw.stream_stream(APPEND)(dribble(), metadata=place_metadata(upload_id, 0))
    _honest_upload(server)
    with refused(Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.UNKNOWN):
        list(call)
    over.set()
    _wait_until_free(server)
    assert offset_of(server, upload_id) == 1


def test_a_site_that_never_reads_its_download_is_cut_off(
    server: BulkServer, raw: grpc.Channel, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(64 * 2**20))
    server.shelf.put(DIGEST, {"large": tmp_path / "large"})
    call = download(raw, binding(round=0), "large")
    next(call)
    _honest_upload(server)
    _wait_until_free(server)
    assert server.counts.out_bytes < 64 * 2**20
    assert server.counts.downloads == 0
    with refused(Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.UNKNOWN):
        list(call)


def test_one_site_cannot_hold_more_than_its_streams(parties: Path, tmp_path: Path) -> None:
    over = threading.Event()

    def hold() -> Iterator[bytes]:
        yield frame(b"\0")
        over.wait(PATIENCE_S)

    limits = Limits(max_calls_per_s=1000, max_streams_per_site=2)
    with BulkServer(parties, tmp_path / "store", limits) as server:
        credentials = server.credentials("hospital-a")
        with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as raw:
            calls = []
            for round in (1, 2):
                place = place_metadata(create(raw, binding(round=round)), 0)
                calls.append(raw.stream_stream(APPEND)(hold(), metadata=place))
                next(calls[-1])
            third = create(raw, binding(round=3))
            with refused(Code.RESOURCE_EXHAUSTED):
                append(raw, third, 0, iter([frame(b"\0")]))
            _honest_upload(server)
            over.set()


def test_a_flood_of_calls_is_refused_with_a_time_to_come_again(
    parties: Path, tmp_path: Path
) -> None:
    limits = Limits(max_calls_per_s=5)
    with BulkServer(parties, tmp_path / "store", limits) as server:
        credentials = server.credentials("hospital-a")
        with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as raw:
            refusals = list(_flood(lambda: create(raw), 60))
            assert refusals
            assert {error.code() for error in refusals} == {Code.RESOURCE_EXHAUSTED}
            waits = [dict(error.trailing_metadata())["retry-after-s"] for error in refusals]
            assert all(0 < float(wait) <= 1 for wait in waits)
            _honest_upload(server)


def _flood(call: Callable[[], object], num_calls: int) -> Iterator[grpc.RpcError]:
    for _ in range(num_calls):
        try:
            call()
        except grpc.RpcError as error:
            yield error
