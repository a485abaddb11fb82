"""Tells a person why a site waits for its server: at once, then about once a minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fedot.errors import TransportError
from fedot.transport.errors import OutOfStep

__all__ = ["Waiting"]

_AGAIN_S = 60.0
_LONGEST = 300


class Waiting:
    """An `OnRetry`; thread-safe.

    Args:
        server: HOST:PORT, for people.
        clock: seconds, never backwards.
    """

    def __init__(self, server: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._server, self._clock = server, clock
        self._guard = threading.Lock()
        self._told: float | None = None
        self.say: Callable[[str], None] = lambda line: None

    def __call__(self, error: TransportError, wait_s: float) -> None:
        """Something is tried again in `wait_s` seconds."""
        if isinstance(error, OutOfStep):
            return
        with self._guard:
            now = self._clock()
            if self._told is not None and now - self._told < _AGAIN_S:
                return
            self._told = now
        self.say(f"waiting for {self._server}: {str(error)[:_LONGEST]} Trying again and again.")
