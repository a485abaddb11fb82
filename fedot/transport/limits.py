"""What one site may take of the server, so that no site takes it from the others."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import Field

from fedot.config_section import Section
from fedot.transport.errors import Busy

__all__ = ["Gate", "Limits", "TokenBucket"]

_PLACE_RETRY_S = 1.0
# An honest site has three at most: it waits, it reports, it begins or ends a transfer.
_MOST_OPEN_CALLS = 8


class Limits(Section):
    """Limits per site, and the one timeout."""

    chunk_bytes: int = Field(2**20, ge=2**12, le=2**22, description="most of a file in one message")
    max_upload_bytes: int = Field(2**36, gt=0, description="of one update")
    max_bytes_per_site: int = Field(2**40, gt=0, description="of all updates in one run")
    bytes_per_s: int | None = Field(None, ge=2**16, description="rate, up and down together")
    max_streams_per_site: int = Field(4, ge=1, description="transfers at the same time")
    max_calls_per_s: float = Field(20.0, gt=0, description="calls and transfers that are begun")
    stall_timeout_s: float = Field(30.0, gt=0, description="a transfer that has not moved ends")


class TokenBucket:
    """So much a second, and `burst` at once.

    Args:
        rate: a second.
        burst: after a pause.
        clock: seconds, never backwards.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]):
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._seen = burst, clock()
        self._guard = threading.Lock()

    def take(self, amount: float) -> float:
        """Take it in any case; how many seconds to wait before it is paid for."""
        with self._guard:
            self._refill()
            self._left -= amount
            return max(0.0, -self._left / self._rate)

    def try_take(self, amount: float) -> float:
        """Take it if it is there (0); else take nothing and say in how many seconds it will be."""
        with self._guard:
            self._refill()
            if self._left < amount:
                return (amount - self._left) / self._rate
            self._left -= amount
            return 0.0

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._seen) * self._rate)
        self._seen = now


class Gate:
    """Enforces `Limits` for every site apart. Thread-safe.

    Args:
        limits: for each site.
        clock: seconds, never backwards.

    Sites are those that the owner admitted, so the tables here stay small.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self.limits = limits
        self._clock = clock
        self._guard = threading.Lock()
        self._calls: dict[str, TokenBucket] = {}
        self._bytes: dict[str, TokenBucket] = {}
        self._streams: defaultdict[str, int] = defaultdict(int)
        self._open_calls: defaultdict[str, int] = defaultdict(int)

    def call(self, site: str) -> None:
        """Count a call of a site.

        Raises:
            Busy: there were too many in the last second.
        """
        rate = self.limits.max_calls_per_s
        wait = self._bucket(self._calls, site, rate, max(1.0, rate)).try_take(1.0)
        if wait:
            raise Busy(f"{site} makes more than {rate:g} calls a second; wait {wait:.1f} s.", wait)

    @contextmanager
    def stream(self, site: str) -> Iterator[None]:
        """Hold one of a site's places for a transfer.

        Raises:
            Busy: all are taken.
        """
        with self._place(self._streams, site, self.limits.max_streams_per_site, "transfers"):
            yield

    @contextmanager
    def open_call(self, site: str) -> Iterator[None]:
        """Hold one of a site's places for a control call: each holds a thread.

        Raises:
            Busy: all are taken.
        """
        with self._place(self._open_calls, site, _MOST_OPEN_CALLS, "calls"):
            yield

    def open_streams(self, site: str) -> int:
        """How many transfers a site has open."""
        with self._guard:
            return self._streams.get(site, 0)

    def pace(self, site: str, num_bytes: int) -> float:
        """Count bytes of a transfer; how many seconds to pause before the next ones."""
        rate = self.limits.bytes_per_s
        if rate is None:
            return 0.0
        return self._bucket(self._bytes, site, rate, rate).take(num_bytes)

    @contextmanager
    def _place(
        self, taken: defaultdict[str, int], site: str, most: int, what: str
    ) -> Iterator[None]:
        with self._guard:
            if taken[site] >= most:
                raise Busy(
                    f"{site} has {most} {what} open, the most it may; end one first.",
                    _PLACE_RETRY_S,
                )
            taken[site] += 1
        try:
            yield
        finally:
            with self._guard:
                taken[site] -= 1

    def _bucket(
        self, buckets: dict[str, TokenBucket], site: str, rate: float, burst: float
    ) -> TokenBucket:
        with self._guard:
            if site not in buckets:
                buckets[site] = TokenBucket(rate, burst, self._clock)
            return buckets[site]
