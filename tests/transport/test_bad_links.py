"""Transfers over links that delay, lose, crawl and are cut, and through a proxy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from bad_link import BadLink, Link
from bulk_server import BulkServer
from connect_proxy import ConnectProxy

from fedot.transport.binding import Binding, File
from fedot.transport.limits import Limits
from fedot.transport.sending import WINDOW_BYTES

MB = 2**20
ENVELOPE = 1.02
DELAYED = Link(delay_s=0.1, loss_prob=0.01, recovery_s=0.2)
CUT_IN_TIME = Link(bytes_per_s=4 * MB, cut_after_s=1.5)
CUT_IN_BYTES = Link(cut_after_bytes=5 * MB + 12345)
CRAWLING = Link(bytes_per_s=60_000)


@pytest.fixture
def server(parties: Path, tmp_path: Path) -> Iterator[BulkServer]:
    limits = Limits(max_calls_per_s=1000, stall_timeout_s=5)
    with BulkServer(parties, tmp_path / "store", limits) as started:
        yield started


def both_ways(
    server: BulkServer, link: Link, payload: bytes, folder: Path
) -> tuple[int, int, tuple[int, int]]:
    """Up and down again: bytes that the site and the server sent, and cuts of each."""
    digest = sha256(payload).hexdigest()
    (folder / "offered").write_bytes(payload)
    server.shelf.put(digest, {"offered": folder / "offered"})
    with (
        BadLink(server.port, link, random.Random(3)) as way,
        server.channel("hospital-a", way.port, stall_timeout_s=5.0, give_up_after_s=60) as channel,
    ):
        channel.upload(Binding("run", 1, "hospital-a", digest), payload)
        up_cuts, up_bytes = way.num_cuts, way.up_bytes
        file = File("offered", len(payload), digest)
        channel.download(Binding("run", 0, "hospital-a", digest), file, folder / "got")
        cuts = (up_cuts, way.num_cuts - up_cuts)
    assert server.store.committed("run", 1)[0].path.read_bytes() == payload
    assert (folder / "got").read_bytes() == payload
    return up_bytes, server.counts.out_bytes, cuts


@pytest.mark.slow
def test_a_link_of_200_ms_and_loss_delivers_all_once(server: BulkServer, tmp_path: Path) -> None:
    payload = random.Random(1).randbytes(6 * MB)
    _, sent, _ = both_ways(server, DELAYED, payload, tmp_path)
    assert server.counts.in_bytes == sent == len(payload)


@pytest.mark.slow
@pytest.mark.parametrize("link", [CUT_IN_TIME, CUT_IN_BYTES], ids=["in time", "in bytes"])
def test_a_cut_costs_at_most_a_window(server: BulkServer, tmp_path: Path, link: Link) -> None:
    payload = random.Random(2).randbytes(18 * MB)
    up, sent, (up_cuts, down_cuts) = both_ways(server, link, payload, tmp_path)
    assert up_cuts >= 2
    # TLS, HTTP/2 and the control calls come on top.
    assert up - len(payload) * ENVELOPE <= up_cuts * WINDOW_BYTES
    assert sent - len(payload) <= down_cuts * WINDOW_BYTES


@pytest.mark.slow
def test_a_link_that_crawls_is_never_cut(parties: Path, tmp_path: Path) -> None:
    # A whole message of the largest size would take four times as long as a stall may.
    limits = Limits(max_calls_per_s=1000, stall_timeout_s=2)
    payload = random.Random(4).randbytes(300_000)
    digest = sha256(payload).hexdigest()
    with (
        BulkServer(parties, tmp_path / "store", limits) as server,
        BadLink(server.port, CRAWLING, random.Random(3)) as way,
        server.channel("hospital-a", way.port, stall_timeout_s=2.0) as channel,
    ):
        channel.upload(Binding("run", 1, "hospital-a", digest), payload)
        assert server.counts.in_bytes == len(payload)


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_transfer_goes_through_a_proxy(
    server: BulkServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    payload = random.Random(5).randbytes(MB)
    what = Binding("run", 1, "hospital-a", sha256(payload).hexdigest())
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ConnectProxy() as proxy:
        address = f"http://127.0.0.1:{proxy.port}"
        if how == "environment":
            monkeypatch.setenv("http_proxy", address)
        with server.channel("hospital-a", proxy=address if how == "argument" else None) as channel:
            assert channel.upload(what, payload).is_committed
        assert proxy.asked == [f"127.0.0.1:{server.port}"]
