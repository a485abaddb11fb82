"""Refused calls: counted all, written down as many as the disk can bear. Hellos likewise."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from fedot.errors import FedotError, ProtocolError, TransportError, WireError
from fedot.transport.audit_log import AuditLog
from fedot.transport.authorize import HookRefusal, RoleRefusal
from fedot.transport.errors import Busy, Denied
from fedot.transport.limits import TokenBucket
from fedot.transport.members import Peer
from fedot.transport.metrics import Telemetry

__all__ = ["LineRate", "Refusals"]

_LINES_PER_S = 2.0
_LINES_AT_ONCE = 20.0
_CAUSES = ((HookRefusal, "hook"), (RoleRefusal, "role"))


class LineRate:
    """How many lines of the log somebody may cost, each by name; thread-safe.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._lines: dict[str, TokenBucket] = {}
        self._left_out: Counter[str] = Counter()

    def take(self, name: str) -> Mapping[str, int] | None:
        """What goes into the line beside its facts: how many were left out; None: leave it out."""
        with self._guard:
            if name not in self._lines:
                self._lines[name] = TokenBucket(_LINES_PER_S, _LINES_AT_ONCE, self._clock)
            if self._lines[name].try_take(1.0):
                self._left_out[name] += 1
                return None
            left_out = self._left_out.pop(name, 0)
        return {"left_out": left_out} if left_out else {}


class Refusals:
    """Notes refusals; thread-safe.

    A refusal costs a line on disk, so nobody may have as many as they like: every member has a rate
    of its own, strangers have one together, and what was left out is told in the next line.

    Args:
        audit: where the lines go.
        telemetry: where all are counted.
        clock: seconds, never going back.
    """

    def __init__(
        self, audit: AuditLog, telemetry: Telemetry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._audit, self._telemetry = audit, telemetry
        self._lines = LineRate(clock)

    def note(self, error: FedotError, peer: Peer | None, action: str, where: str) -> None:
        """One refused call.

        Args:
            error: why.
            peer: whose, where that is known.
            action: what it asked for.
            where: its address.
        """
        self._telemetry.refused(_reason(error))
        # What broke off or has to wait was not refused.
        if isinstance(error, TransportError):
            return
        more = self._lines.take(peer.name if peer is not None else "")
        if more is not None:
            self._audit.record("refused", peer, action=action, why=str(error), where=where, **more)


def _reason(error: FedotError) -> str:
    if isinstance(error, Busy):
        return "limit"
    if isinstance(error, Denied):
        return next(
            (text for kind, text in _CAUSES if isinstance(error.__cause__, kind)), "identity"
        )
    if isinstance(error, ProtocolError):
        return "state"
    return "wire" if isinstance(error, WireError) else "other"
