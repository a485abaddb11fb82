"""Liveness by progress: a transfer that moves is never cut, one that does not move is.

Both sides use it: the server to cut peers that stall or were revoked, a site to leave a server that
does not answer any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedot.errors import FedotError

__all__ = ["Pace", "StallWatch", "Watched"]

_LOOKS_PER_TIMEOUT = 4
# Revocation must not wait for a long timeout.
_LONGEST_NAP_S = 1.0


class Watched:
    """One transfer: whoever runs it says `moved`."""

    def __init__(
        self, cut: Callable[[], object], still_allowed: Callable[[], bool], now: float
    ) -> None:
        self._cut, self._still_allowed = cut, still_allowed
        self._moved = now
        self.stalled = False
        self.forbidden = False

    def moved(self) -> None:
        """There was progress."""
        self._moved = time.monotonic()

    def look(self, now: float, timeout_s: float) -> None:
        """Cut it off if it has stalled or is not allowed any more."""
        if self.stalled or self.forbidden:
            return
        try:
            self.forbidden = not self._still_allowed()
        except FedotError:
            # Whom nobody can vouch for is not let on.
            self.forbidden = True
        self.stalled = now - self._moved > timeout_s
        if self.forbidden or self.stalled:
            self._cut()


class StallWatch:
    """One thread that looks after all transfers; a context manager that ends it.

    Args:
        timeout_s: a transfer that has not moved for so long is cut.
    """

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._all: set[Watched] = set()
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fedot-stalls", daemon=True)
        self._thread.start()

    @contextmanager
    def watching(
        self, cut: Callable[[], object], still_allowed: Callable[[], bool] = lambda: True
    ) -> Iterator[Watched]:
        """Look after a transfer as long as the block runs.

        Args:
            cut: called once, from another thread, when it has stalled or is not allowed any more.
            still_allowed: asked about once a second; must be quick; an error means no.
        """
        watched = Watched(cut, still_allowed, time.monotonic())
        with self._guard:
            self._all.add(watched)
        try:
            yield watched
        finally:
            with self._guard:
                self._all.discard(watched)

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def __enter__(self) -> StallWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        nap_s = min(self._timeout_s / _LOOKS_PER_TIMEOUT, _LONGEST_NAP_S)
        while not self._over.wait(nap_s):
            with self._guard:
                transfers = list(self._all)
            now = time.monotonic()
            for watched in transfers:
                watched.look(now, self._timeout_s)


class Pace:
    """How much of a file goes into one message.

    A message is progress only when it is there whole, so on a slow link messages must be small.

    Args:
        most_bytes: on a fast link.
        timeout_s: after which a transfer without progress is cut.
    """

    _LEAST_BYTES = 2**12
    _FIRST_BYTES = 2**16

    def __init__(self, most_bytes: int, timeout_s: float):
        self._most = most_bytes
        self._quick_s, self._slow_s = timeout_s / 128, timeout_s / 16
        self.chunk_bytes = min(self._FIRST_BYTES, most_bytes)

    def took(self, seconds: float) -> None:
        """A message of `chunk_bytes` took so long."""
        if seconds < self._quick_s:
            self.chunk_bytes = min(self.chunk_bytes * 2, self._most)
        elif seconds > self._slow_s:
            self.chunk_bytes = max(self.chunk_bytes // 2, self._LEAST_BYTES)
