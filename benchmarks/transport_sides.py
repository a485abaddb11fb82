"""What the two processes of every transfer share; needs the standard library alone.

A side says `ready`, waits for a line, moves the payload if it is the one that measures, prints
what it saw as JSON, and ends when its input does. Peers' environments import this too.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CHUNK_BYTES = 1 << 20


class Job(NamedTuple):
    """One transfer, as both sides are told of it."""

    side: str  # server or client
    way: str  # up: client to server; down: server to client
    work: Path  # has payload, keys/, and gets `received`
    port: int
    size: int
    sync_bytes: int  # the floor's fdatasync: after so many bytes, 0: once at the end

    @property
    def payload(self) -> Path:
        """The file to send."""
        return self.work / f"payload-{self.size}"

    @property
    def received(self) -> Path:
        """Where the receiver leaves it."""
        return self.work / "received"

    def key(self, name: str) -> str:
        """The path of a certificate or key."""
        return str(self.work / "keys" / name)

    def keys(self) -> tuple[bytes, bytes, bytes]:
        """CA, own certificate, own key (PEM)."""
        names = ("ca.crt", f"{self.side}.crt", f"{self.side}.key")
        ca, certificate, key = (Path(self.key(name)).read_bytes() for name in names)
        return ca, certificate, key


def end_at_once(*raised: Any) -> None:
    """Threads that a library left behind must not keep a failed side alive."""
    traceback.print_exception(*raised)
    sys.stderr.flush()
    os._exit(1)


def job() -> Job:
    """What the command line says; from here on an error ends the process."""
    sys.excepthook = end_at_once
    side, way, work, port, size, sync = sys.argv[1:]
    return Job(side, way, Path(work), int(port), int(size), int(sync))


def serve(move: Callable[[], object] | None) -> None:
    """Follow the order above; `move` is given by the side that measures."""
    print("ready", flush=True)
    sys.stdin.readline()
    if move:
        begin = time.monotonic()
        move()
        print(json.dumps({"begin": begin, "end": time.monotonic()}), flush=True)
    sys.stdin.read()
