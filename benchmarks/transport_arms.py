"""One transfer by each arm: two sides started, watched, told to go, checked and stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from transport_flower import flower
from transport_sides import CHUNK_BYTES
from transport_watch import Watch

HERE = Path(__file__).parent


class Load(NamedTuple):
    """What is moved, and where it happens."""

    work: Path
    size: int
    crc: int

    @property
    def payload(self) -> Path:
        """The file to send."""
        return self.work / f"payload-{self.size}"


class Run(NamedTuple):
    """One transfer, measured."""

    seconds: float
    server_bytes: int
    client_bytes: int
    processor_seconds: float


Arm = Callable[[Load, str], Run]


def free_port() -> int:
    """Of two free ports in a row, the first."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def environment(python: str) -> dict[str, str]:
    """Peers must not see this checkout; fedot's own side must."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept if python != sys.executable else {**kept, "PYTHONPATH": str(HERE.parent)}


@contextmanager
def sides(
    command: list[str], work: Path, size: int, way: str, sync: int = 0
) -> Iterator[dict[str, Any]]:
    """The server's and the client's process of a script, both ready."""
    port = free_port()
    processes: dict[str, subprocess.Popen[str]] = {}
    # Below 5 MB/s something hangs; killed, the sides end whatever waits for them.
    late = threading.Timer(60 + size / 5e6, lambda: [p.kill() for p in processes.values()])
    late.start()
    try:
        for side in ("server", "client"):
            rest = [side, way, str(work), str(port), str(size), str(sync)]
            log = work / f"{side}.log"
            with log.open("w", encoding="utf-8") as errors:
                processes[side] = subprocess.Popen(
                    [*command, *rest],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment(command[0]),
                )
            wait_for(processes[side], "ready", log)
        yield processes
    finally:
        late.cancel()
        for process in reversed(processes.values()):
            stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """Its input ends, so it should; if it does not, it is made to."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(process: subprocess.Popen[str], text: str, log: Path) -> str:
    """The next line that starts so; libraries print others."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return line
    raise RuntimeError(f"a side ended early:\n{log.read_text(encoding='utf-8')[-3000:]}")


def pair(script: str, python: str, measures: dict[str, str], sync: int = 0) -> Arm:
    """An arm of two processes of a script; `measures` maps a way to the side that has the clock."""

    def run(load: Load, way: str) -> Run:
        received = load.work / "received"
        received.unlink(missing_ok=True)
        os.sync()
        with sides([python, str(HERE / script)], load.work, load.size, way, sync) as both:
            roots = {side: process.pid for side, process in both.items()}
            with Watch(roots) as watch:
                time.sleep(0.2)
                for process in both.values():
                    process.stdin.write("go\n")
                    process.stdin.flush()
                side = measures[way]
                times = json.loads(wait_for(both[side], "{", load.work / f"{side}.log"))
                time.sleep(0.1)
        if received.stat().st_size != load.size or crc_of(received) != load.crc:
            raise RuntimeError(f"{script} {way}: what arrived is not what was sent")
        received.unlink()
        return measured(watch, times["begin"], times["end"])

    return run


def measured(watch: Watch, begin: float, end: float) -> Run:
    used = watch.processor_seconds(begin, end)
    return Run(end - begin, watch.peaks["server"], watch.peaks["client"], used)


def flower_arm(python: str) -> Arm:
    """Flower's whole way; an exchange of empty messages first, whose time is taken off."""

    def run(load: Load, way: str) -> Run:
        first, last = ("begin", "in") if way == "down" else ("out", "end")
        os.sync()
        with (
            flower(Path(python).parent, load.work, free_port()) as (both, roots),
            Watch(roots) as watch,
        ):
            empty = both.exchange("empty", load.payload)
            full = both.exchange(way, load.payload)
            time.sleep(0.2)
        if full["crc"] != load.crc:
            raise RuntimeError(f"Flower {way}: what arrived is not what was sent")
        alone = measured(watch, empty[first], empty[last])
        whole = measured(watch, full[first], full[last])
        return whole._replace(
            seconds=whole.seconds - alone.seconds,
            processor_seconds=whole.processor_seconds - alone.processor_seconds,
        )

    return run
