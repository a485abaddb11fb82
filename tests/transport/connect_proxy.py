"""An HTTP proxy that only knows CONNECT, as stands in front of many hospitals."""

from __future__ import annotations

import contextlib
import socket
import threading

__all__ = ["ConnectProxy"]

_HEAD_BYTES = 2**13


class ConnectProxy:
    """Listens on this machine; a context manager that stops.

    Attributes:
        port: where it listens.
        asked: what clients asked to be connected to.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[str] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> ConnectProxy:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._open.append(near)
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES:
            head += near.recv(_HEAD_BYTES)
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        if method != "CONNECT":
            near.close()
            return
        self.asked.append(target)
        port = int(target.rpartition(":")[2])
        far = socket.create_connection(("127.0.0.1", port))
        self._open.append(far)
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=_pass_on, args=(far, near), daemon=True).start()
        _pass_on(near, far)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(2**16):
            sink.sendall(block)
        sink.shutdown(socket.SHUT_WR)
