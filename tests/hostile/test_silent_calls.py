"""Callers that open calls and send nothing, or too much: none takes the threads of the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from whole_server import Caller, Net, make_pki, running

from fedot.transport import fedot_pb2 as pb
from fedot.transport import server
from fedot.transport.frames import DOWNLOAD
from fedot.transport.limits import Limits
from fedot.transport.service import PROTOCOL

CONTROL = "/fedot.v1.Federation/"
# Longer than the stall timeout: an answer must not wait until silent calls are cut off.
STALL_S = 4.0
ANSWER_S = 3.0
PATIENCE_S = 20.0
NUM_THREADS = 16
Code = grpc.StatusCode


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    """A server with few threads, so that few calls would hold all of them."""
    monkeypatch.setattr(server, "_MOST_THREADS", NUM_THREADS)
    make_pki(tmp_path)
    limits = Limits(max_calls_per_s=1000, stall_timeout_s=STALL_S, max_streams_per_site=2)
    with running(tmp_path, limits=limits) as net:
        yield net


class Silent:
    """Calls of one caller that are open, and by which nothing is sent until the end."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.calls: list[Any] = []

    def open(self, channel: grpc.Channel, method: str) -> None:
        self.calls.append(channel.stream_unary(method).future(self._nothing()))

    def _nothing(self) -> Iterator[bytes]:
        self._over.wait(PATIENCE_S)
        yield from ()

    def codes(self) -> list[grpc.StatusCode]:
        """How they ended."""
        return [call.exception(PATIENCE_S).code() for call in self.calls]

    def end(self) -> None:
        self._over.set()
        for call in self.calls:
            call.cancel()


@pytest.fixture
def silent() -> Iterator[Silent]:
    silent = Silent()
    yield silent
    silent.end()


def request(name: str) -> bytes:
    asked = pb.HelloRequest(protocol=PROTOCOL, version="1", dataset_id=f"data of {name}")
    return asked.SerializeToString()


def hello(caller: Caller) -> str:
    call = caller.channel.unary_unary(f"{CONTROL}Hello")
    return pb.HelloReply.FromString(call(request(caller.name), timeout=ANSWER_S)).site


def answered(caller: Caller) -> bool:
    try:
        return hello(caller) == caller.name
    except grpc.RpcError:
        return False


@pytest.mark.parametrize("method", [f"{CONTROL}Hello", f"{CONTROL}Next", DOWNLOAD])
def test_revoked_site_holds_no_thread_by_sending_nothing(
    net: Net, silent: Silent, method: str
) -> None:
    a, b = net.caller("a"), net.caller("b")
    assert hello(a) == "a"
    net.hub.members.revoke("b")
    for _ in range(2 * NUM_THREADS):
        silent.open(b.channel, method)
    assert hello(a) == "a"
    assert set(silent.codes()) == {Code.PERMISSION_DENIED}


def test_admitted_site_holds_few_threads_and_not_for_long(net: Net, silent: Silent) -> None:
    a, b = net.caller("a"), net.caller("b")
    for _ in range(NUM_THREADS):
        silent.open(b.channel, f"{CONTROL}Next")
        silent.open(b.channel, DOWNLOAD)
    assert hello(a) == "a"
    codes = silent.codes()
    assert codes.count(Code.RESOURCE_EXHAUSTED) > NUM_THREADS
    # By whichever side it is noticed first.
    cut_off = {Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.UNKNOWN, Code.RESOURCE_EXHAUSTED}
    assert set(codes) <= cut_off
    # A moment after the caller heard of it, their threads are free again.
    tick = threading.Event()
    assert any(answered(b) or tick.wait(0.1) for _ in range(int(PATIENCE_S / 0.1)))


@pytest.mark.parametrize("num_messages", [0, 2, 1000])
@pytest.mark.parametrize("method", [f"{CONTROL}Hello", DOWNLOAD])
def test_call_has_one_request(net: Net, method: str, num_messages: int) -> None:
    net.open_run("a")
    with pytest.raises(grpc.RpcError) as caught:
        net.caller("a").channel.stream_unary(method)(
            iter([request("a")] * num_messages), timeout=ANSWER_S
        )
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert "must have one" in caught.value.details()
