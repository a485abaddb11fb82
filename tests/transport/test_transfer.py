"""Transfers over real gRPC and real TLS."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from bulk_server import BulkServer

from fedot.errors import ConfigError, PeerTimeout, ProtocolError, TransportError, WireError
from fedot.transport import fedot_pb2 as wire
from fedot.transport.binding import Binding, File
from fedot.transport.channel import Channel
from fedot.transport.errors import Denied
from fedot.transport.limits import Limits
from fedot.transport.sending import WINDOW_BYTES

PAYLOAD = random.Random(11).randbytes(3 * 2**20 + 5)
DIGEST = sha256(PAYLOAD).hexdigest()
LIMITS = Limits(max_calls_per_s=1000)


def binding(site: str = "hospital-a", round: int = 1, digest: str = DIGEST) -> Binding:
    return Binding("run", round, site, digest)


def quick(**changes: float) -> Limits:
    return Limits.model_validate({"max_calls_per_s": 1000, "stall_timeout_s": 1.0, **changes})


@pytest.fixture
def server(parties: Path, tmp_path: Path) -> Iterator[BulkServer]:
    with BulkServer(parties, tmp_path / "store", LIMITS) as started:
        yield started


@pytest.fixture
def channel(server: BulkServer) -> Iterator[Channel]:
    with server.channel("hospital-a") as opened:
        yield opened


@pytest.fixture
def offered(server: BulkServer, tmp_path: Path) -> File:
    (tmp_path / "offered").write_bytes(PAYLOAD)
    server.shelf.put(DIGEST, {"model.safetensors": tmp_path / "offered"})
    return server.shelf.files(DIGEST)[0]


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_an_upload_arrives_as_it_was_sent(
    server: BulkServer, channel: Channel, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "update").write_bytes(PAYLOAD)
    seen: list[tuple[int, int]] = []
    status = channel.upload(
        binding(),
        PAYLOAD if kind == "bytes" else tmp_path / "update",
        '{"epsilon": 1}',
        lambda done, total: seen.append((done, total)),
    )
    assert status.is_committed
    (found,) = server.store.committed("run", 1)
    assert found.path.read_bytes() == PAYLOAD
    assert found.metadata == '{"epsilon": 1}'
    assert seen[0] == (0, len(PAYLOAD))
    assert seen[-1] == (len(PAYLOAD), len(PAYLOAD))
    assert seen == sorted(seen)


def test_the_same_upload_again_sends_no_byte(server: BulkServer, channel: Channel) -> None:
    channel.upload(binding(), PAYLOAD)
    assert channel.upload(binding(), PAYLOAD).is_committed
    assert server.counts.in_bytes == len(PAYLOAD)


def test_an_empty_update_and_an_empty_file_travel(
    server: BulkServer, channel: Channel, tmp_path: Path
) -> None:
    nothing = sha256(b"").hexdigest()
    assert channel.upload(binding(digest=nothing), b"").is_committed
    (tmp_path / "empty").touch()
    server.shelf.put(nothing, {"empty": tmp_path / "empty"})
    (file,) = channel.files(binding(digest=nothing))
    channel.download(binding(digest=nothing), file, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b""


def test_another_update_for_the_round_is_refused_for_good(channel: Channel) -> None:
    channel.upload(binding(), PAYLOAD)
    with pytest.raises(ProtocolError, match="the first one counts"):
        channel.upload(binding(digest=sha256(b"x").hexdigest()), b"x")


def test_a_wrong_digest_is_an_error_at_the_site(server: BulkServer, channel: Channel) -> None:
    with pytest.raises(WireError, match="digest"):
        channel.upload(binding(digest="0" * 64), PAYLOAD)
    assert not server.store.committed("run", 1)


def test_a_download_arrives_whole(channel: Channel, offered: File, tmp_path: Path) -> None:
    seen: list[int] = []
    assert channel.files(binding(round=0)) == [offered]
    channel.download(
        binding(round=0), offered, tmp_path / "got", lambda done, total: seen.append(done)
    )
    assert (tmp_path / "got").read_bytes() == PAYLOAD
    assert not (tmp_path / "got.part").exists()
    assert (seen[0], seen[-1]) == (0, len(PAYLOAD))


def test_a_download_goes_on_where_another_process_stopped(
    server: BulkServer, channel: Channel, offered: File, tmp_path: Path
) -> None:
    (tmp_path / "got.part").write_bytes(PAYLOAD[: 2**20])
    channel.download(binding(round=0), offered, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == PAYLOAD
    assert server.counts.out_bytes == len(PAYLOAD) - 2**20


@pytest.mark.parametrize("left_over", [b"x" * 1000, PAYLOAD + b"too long", b"y" * len(PAYLOAD)])
def test_a_part_of_something_else_does_no_harm(
    channel: Channel, offered: File, tmp_path: Path, left_over: bytes
) -> None:
    (tmp_path / "got.part").write_bytes(left_over)
    channel.download(binding(round=0), offered, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == PAYLOAD


def test_a_file_that_is_not_what_was_announced_is_not_kept(
    channel: Channel, offered: File, tmp_path: Path
) -> None:
    with pytest.raises(WireError, match="digest"):
        channel.download(
            binding(round=0), File(offered.name, offered.size, "0" * 64), tmp_path / "got"
        )
    with pytest.raises(WireError, match="has more"):
        channel.download(
            binding(round=0), File(offered.name, 1000, offered.sha256), tmp_path / "got"
        )
    assert not (tmp_path / "got").exists()


def test_who_may_not_have_a_file_hears_why(
    server: BulkServer, channel: Channel, offered: File, tmp_path: Path
) -> None:
    with pytest.raises(Denied, match="another's"):
        channel.download(binding("hospital-b", 0), offered, tmp_path / "got")
    with pytest.raises(WireError, match="no file of that name"):
        channel.download(binding(round=0), File("other", 1, DIGEST), tmp_path / "got")


def test_an_upload_survives_a_restart_of_the_server(parties: Path, tmp_path: Path) -> None:
    payload = random.Random(5).randbytes(24 * 2**20)
    what = Binding("run", 1, "hospital-a", sha256(payload).hexdigest())
    first = BulkServer(parties, tmp_path / "store", LIMITS)
    port, restarted = first.port, threading.Event()

    with first.channel("hospital-a") as channel:

        def progress(done: int, total: int) -> None:
            if done > 4 * 2**20 and not restarted.is_set():
                restarted.set()
                first.stop()
                servers.append(BulkServer(parties, tmp_path / "store", LIMITS, port))

        servers: list[BulkServer] = []
        try:
            assert channel.upload(what, payload, "{}", progress).is_committed
            second = servers[0]
            assert second.store.committed("run", 1)[0].path.read_bytes() == payload
            # What was acknowledged was not sent again.
            assert second.counts.in_bytes <= len(payload) - 4 * 2**20
            assert first.counts.in_bytes + second.counts.in_bytes <= len(payload) + WINDOW_BYTES
        finally:
            for server in servers:
                server.stop()


def test_a_new_connection_asks_for_fresh_credentials(server: BulkServer) -> None:
    asked: list[int] = []

    def credentials() -> grpc.ChannelCredentials:
        asked.append(1)
        return server.credentials("hospital-a")

    with Channel(f"127.0.0.1:{server.port}", credentials, random.Random(1)) as channel:
        channel.upload(binding(), PAYLOAD)
        channel.upload(binding(), PAYLOAD)
        assert len(asked) == 1
        channel.reconnect()
        channel.upload(binding(), PAYLOAD)
        assert len(asked) == 2


def test_nobody_there_is_a_transport_error_in_time(server: BulkServer) -> None:
    server.stop()
    with (
        server.channel("hospital-a", give_up_after_s=0.5) as channel,
        pytest.raises(TransportError),
    ):
        channel.upload(binding(), PAYLOAD)


def test_an_error_of_progress_ends_the_transfer(channel: Channel) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        channel.upload(binding(), PAYLOAD, "{}", stop)
    assert channel.upload(binding(), PAYLOAD).is_committed


def test_a_source_that_shrinks_is_an_error(channel: Channel, tmp_path: Path) -> None:
    source = tmp_path / "update"
    source.write_bytes(PAYLOAD)

    def shrink(done: int, total: int) -> None:
        source.write_bytes(b"")

    with pytest.raises(ConfigError, match="shorter"):
        channel.upload(binding(), source, "{}", shrink)
    with pytest.raises(ConfigError, match="cannot read"):
        channel.upload(binding(), tmp_path / "missing")


def test_revocation_cuts_a_transfer_that_is_open(parties: Path, tmp_path: Path) -> None:
    own = tmp_path / "parties"
    shutil.copytree(parties, own)
    limits = Limits(max_calls_per_s=1000, bytes_per_s=2**19)
    payload = bytes(40 * 2**20)
    what = Binding("run", 1, "hospital-a", sha256(payload).hexdigest())
    with BulkServer(own, tmp_path / "store", limits) as server:
        revoked: list[str] = []

        def progress(done: int, total: int) -> None:
            if done and not revoked:
                revoked.extend(server.members.revoke("hospital-a"))

        with (
            server.channel("hospital-a") as channel,
            pytest.raises(ProtocolError, match=r"revoked|not admitted"),
        ):
            channel.upload(what, payload, "{}", progress)
        assert revoked
        assert server.counts.in_bytes < len(payload)


def test_a_rate_limit_slows_and_does_not_cut(parties: Path, tmp_path: Path) -> None:
    limits = quick(bytes_per_s=2**20, chunk_bytes=2**20)
    with (
        BulkServer(parties, tmp_path / "store", limits) as server,
        server.channel("hospital-a", stall_timeout_s=1.0) as channel,
    ):
        assert channel.upload(binding(), PAYLOAD).is_committed
        assert server.counts.in_bytes == len(PAYLOAD)


class Silent(grpc.GenericRpcHandler):
    """A server that takes calls and says nothing."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.stream_stream_rpc_method_handler(self._wait)

    def _wait(self, requests: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(self.over.set)
        self.over.wait(20)
        yield b""


def test_a_site_leaves_a_server_that_says_nothing(parties: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from fedot.transport.identity import server_credentials

    silent = Silent()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((silent,))
        port = server.add_secure_port("127.0.0.1:0", server_credentials(parties / "pki"))
        server.start()
        from fedot.transport.identity import read_kit

        kit = read_kit(parties / "pki" / "hospital-a.kit.json")
        key = parties / "hospital-a" / "hospital-a.key"
        try:
            with (
                Channel(
                    f"127.0.0.1:{port}",
                    lambda: kit.channel_credentials(key),
                    random.Random(1),
                    stall_timeout_s=0.5,
                    give_up_after_s=0.1,
                ) as channel,
                pytest.raises(PeerTimeout, match=r"sent nothing for 0\.5 s"),
            ):
                channel.download(binding(round=0), File("model", 10, DIGEST), tmp_path / "got")
        finally:
            silent.over.set()
            server.stop(0).wait()


def test_names_and_digests_from_a_server_are_checked(
    server: BulkServer, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, digest in (("../evil", DIGEST), ("fine", "../evil"), ("nul\0", DIGEST)):
        hostile = wire.FilesReply(files=[wire.File(name=name, size=1, sha256=digest)])
        monkeypatch.setattr(server, "_files", lambda *_, reply=hostile: reply)
        with pytest.raises(WireError):
            channel.files(binding(round=0))
