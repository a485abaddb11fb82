"""Memory and processor time of both sides of a transfer, each with all its child processes.

Memory is RssAnon: what a process cannot give back, without mapped files. It is sampled, so a peak
shorter than the interval can be missed. Linux only.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

INTERVAL_S = 0.05
# What has to stay free for the rest of the machine; beyond it a transfer is given up.
SPARE_BYTES = 2 << 30
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# Moments of the monotonic clock, and each side's memory in bytes.
Series = list[tuple[float, dict[str, int]]]


def kib_of(path: str, key: str) -> int:
    """A value of /proc/PID/status or /proc/meminfo in KiB; 0 for a process that has ended."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)


def available_bytes() -> int:
    return kib_of("/proc/meminfo", "MemAvailable:") * 1024


def stat_of(pid: str) -> tuple[int, float] | None:
    """Parent and processor seconds (user and system) of a process; None when it has ended."""
    try:
        fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def trees(roots: dict[str, int]) -> dict[str, set[int]]:
    """The processes below (and with) each root."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := stat_of(name)):
            children.setdefault(found[0], []).append(int(name))
    result = {}
    for side, root in roots.items():
        seen, todo = {root}, [root]
        while todo:
            new = [pid for pid in children.get(todo.pop(), []) if pid not in seen]
            seen.update(new)
            todo += new
        result[side] = seen
    return result


class ShortOfMemory(Exception):
    """A transfer was given up before it could harm the rest of the machine."""


class Watch:
    """Samples in a thread between entering and leaving; `roots` maps a side to its process.

    Below `SPARE_BYTES` of free memory it kills both sides, and says so when it is left.
    """

    def __init__(self, roots: dict[str, int]) -> None:
        self.peaks = dict.fromkeys(roots, 0)
        self._is_short = False
        self.series: Series = []
        self._roots = roots
        self._seconds: dict[int, float] = {}  # of each process, kept when it has ended
        self._used: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_short:
            raise ShortOfMemory

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(INTERVAL_S):
            if count % 10 == 0:  # Children come and go seldom, and looking for them costs.
                found = trees(self._roots)
            count += 1
            self._sample(found)
            if available_bytes() < SPARE_BYTES:
                self._is_short = True
                for pid in set().union(*found.values()):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _sample(self, found: dict[str, set[int]]) -> None:
        memory = {}
        for side, pids in found.items():
            anonymous = sum(kib_of(f"/proc/{pid}/status", "RssAnon:") for pid in pids) * 1024
            memory[side] = anonymous
            self.peaks[side] = max(self.peaks[side], anonymous)
            for pid in pids:
                if stat := stat_of(str(pid)):
                    self._seconds[pid] = stat[1]
        self.series.append((time.monotonic(), memory))
        self._used.append((time.monotonic(), sum(self._seconds.values())))

    def processor_seconds(self, begin: float, end: float) -> float:
        """Used by both sides between two moments of the monotonic clock."""
        return self._at(end) - self._at(begin)

    def _at(self, moment: float) -> float:
        before = [sample for sample in self._used if sample[0] <= moment]
        after = [sample for sample in self._used if sample[0] > moment]
        if not before or not after:
            return (before or after)[-1 if before else 0][1]
        (left, low), (right, high) = before[-1], after[0]
        return low + (high - low) * (moment - left) / (right - left)
