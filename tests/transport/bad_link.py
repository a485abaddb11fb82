"""A userspace TCP proxy that is a bad link: late, slow, lossy, and cut again and again.

TCP hides loss behind waiting: a lost segment is sent again after a timeout, and all behind it
waits. So loss is made as such a wait, for a share of the segments. Nothing here knows TLS or gRPC.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass

__all__ = ["BadLink", "Link"]

_SEGMENT_BYTES = 1460
_READ_BYTES = 2**16
# What a real socket and its router would hold; more would hide a slow link from the sender.
_BUFFER_BYTES = 2**18


@dataclass(frozen=True)
class Link:
    """How bad it is.

    Attributes:
        delay_s: one way.
        loss_prob: of a segment.
        recovery_s: what a loss costs everything behind it.
        bytes_per_s: each way; None: as fast as it goes.
        cut_after_s: of each connection; None: never.
        cut_after_bytes: of each connection, towards the server; None: never.
    """

    delay_s: float = 0.0
    loss_prob: float = 0.0
    recovery_s: float = 0.2
    bytes_per_s: float | None = None
    cut_after_s: float | None = None
    cut_after_bytes: int | None = None


class BadLink:
    """Listens on this machine and passes bytes on to a port; a context manager that stops.

    Args:
        port: of the server.
        link: how bad.
        rng: decides what is lost.

    Attributes:
        port: where to connect.
        num_cuts: how many connections were cut by `link`.
        up_bytes: what came in towards the server, TLS and all.
    """

    def __init__(self, port: int, link: Link, rng: random.Random):
        self._target, self._link, self._rng = port, link, rng
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.num_cuts = self.up_bytes = 0
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._over = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> BadLink:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut(list(self._open))

    def _accept(self) -> None:
        while not self._over:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                continue
            with self._guard:
                self._open |= {near, far}
            pair = [near, far]
            threading.Thread(target=_Way(self, near, far, True).read, args=(pair,)).start()
            threading.Thread(target=_Way(self, far, near, False).read, args=(pair,)).start()
            if self._link.cut_after_s is not None:
                timer = threading.Timer(self._link.cut_after_s, self._count_and_cut, (pair,))
                timer.daemon = True
                timer.start()

    def _count(self, up_bytes: int) -> None:
        with self._guard:
            self.up_bytes += up_bytes

    def _count_and_cut(self, pair: list[socket.socket]) -> None:
        with self._guard:
            was_open = bool(self._open & set(pair))
            self.num_cuts += was_open and not self._over
        self._cut(pair)

    def _cut(self, sockets: list[socket.socket]) -> None:
        with self._guard:
            self._open -= set(sockets)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class _Way:
    """One direction of one connection."""

    def __init__(self, proxy: BadLink, source: socket.socket, sink: socket.socket, is_up: bool):
        self._proxy, self._source, self._sink = proxy, source, sink
        self._link, self._is_up = proxy._link, is_up
        self._queue: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._changed = threading.Condition()
        self._is_over = False
        # No byte overtakes another.
        self._free_at = 0.0

    def read(self, pair: list[socket.socket]) -> None:
        writer = threading.Thread(target=self._write, args=(pair,))
        writer.start()
        passed = 0
        with contextlib.suppress(OSError):
            while block := self._source.recv(_READ_BYTES):
                self._put(block)
                passed += len(block)
                self._proxy._count(len(block) if self._is_up else 0)
                most = self._link.cut_after_bytes
                if self._is_up and most is not None and passed >= most:
                    self._proxy._count_and_cut(pair)
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        writer.join()
        self._proxy._cut(pair)

    def _put(self, block: bytes) -> None:
        link = self._link
        now = time.monotonic()
        begin = max(now, self._free_at)
        self._free_at = begin + (len(block) / link.bytes_per_s if link.bytes_per_s else 0.0)
        segments = -(-len(block) // _SEGMENT_BYTES)
        if link.loss_prob and self._proxy._rng.random() > (1 - link.loss_prob) ** segments:
            self._free_at += link.recovery_s
        with self._changed:
            self._queue.append((self._free_at + link.delay_s, block))
            self._held += len(block)
            self._changed.notify_all()
            # What is on the way in time fills no buffer: only what waits for the slow part does.
            room = _BUFFER_BYTES + link.delay_s * (link.bytes_per_s or 2**25)
            self._changed.wait_for(lambda: self._is_over or self._held <= room)

    def _write(self, pair: list[socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._is_over)
                    if not self._queue:
                        break
                    due, block = self._queue.popleft()
                if (left := due - time.monotonic()) > 0:
                    time.sleep(left)
                self._sink.sendall(block)
                with self._changed:
                    self._held -= len(block)
                    self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._proxy._cut(pair)
