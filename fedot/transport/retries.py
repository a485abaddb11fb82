"""When a site tries again: longer and longer, never in step with others, as long as it takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fedot.errors import TransportError
from fedot.transport.errors import Busy, OutOfStep

__all__ = ["OnRetry", "Retries"]

OnRetry = Callable[[TransportError, float], None]
"""Called as `on_retry(error, wait_s)` before each wait."""

_T = TypeVar("_T")
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 30.0
# Both sides then disagree about something that asking again does not mend.
_MOST_OUT_OF_STEP = 8


@dataclass(frozen=True)
class Retries:
    """Runs something until it works.

    Attributes:
        rng: spreads the waiting times, so that a hundred sites do not come back at once.
        give_up_after_s: without progress; None: never.
        sleep: how to wait; an error that it raises ends the trying.
        clock: seconds, never backwards.
        on_retry: told what went wrong and how long it waits now, so that a person can be told.
    """

    rng: random.Random
    give_up_after_s: float | None = None
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    on_retry: OnRetry = lambda error, wait_s: None

    def run(self, attempt: Callable[[], _T], reached: Callable[[], int] = lambda: 0) -> _T:
        """Call `attempt` until it returns, or fails for good.

        Args:
            attempt: raises `TransportError` when it can be tried again.
            reached: how far it has come; whoever comes further starts with short waits again.
        """
        tries, disagreed, began, before = 0, 0, self.clock(), reached()
        while True:
            try:
                return attempt()
            except TransportError as error:
                if reached() > before:
                    tries, disagreed, began, before = 0, 0, self.clock(), reached()
                disagreed = disagreed + 1 if isinstance(error, OutOfStep) else 0
                if disagreed > _MOST_OUT_OF_STEP or self._has_run_out(began):
                    raise
                wait_s = self._wait_s(error, tries)
                self.on_retry(error, wait_s)
                self.sleep(wait_s)
                tries += 1

    def _has_run_out(self, began: float) -> bool:
        limit = self.give_up_after_s
        return limit is not None and self.clock() - began >= limit

    def _wait_s(self, error: TransportError, tries: int) -> float:
        if isinstance(error, OutOfStep) and not tries:
            return 0.0
        longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(tries, 16))
        wait = longest * self.rng.uniform(0.5, 1.0)
        return error.retry_after_s + wait if isinstance(error, Busy) else wait
