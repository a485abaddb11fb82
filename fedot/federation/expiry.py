"""Certificates that end soon: said when a server starts, and once a day."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from fedot.errors import FedotError
from fedot.transport.identity import server_days_left
from fedot.transport.members import Members

__all__ = ["FEW_DAYS", "daily", "ending_soon"]

FEW_DAYS = 14
"""Time enough to ask for another certificate, and to get it."""
_DAY_S = 86400.0


def ending_soon(pki: Path, members: Members, now: datetime) -> list[str]:
    """A line for the server and for every member whose last certificate ends in a few days.

    Args:
        pki: the owner's folder.
        members: who was admitted.
        now: the time.
    """
    lines = []
    try:
        server = server_days_left(pki, now)
        if server < FEW_DAYS:
            lines.append(f"! the server's certificate ends in {server:.0f} days: fedot pki renew")
        last = {each.name: each for each in sorted(members.valid(now), key=lambda m: m.ends)}
    except FedotError as error:
        return [f"! {error}"]
    for name, member in sorted(last.items()):
        days = (member.ends - now).total_seconds() / 86400
        if days < FEW_DAYS:
            again = "fedot pki renew" if member.role == "owner" else "fedot pki request, there"
            lines.append(f"! the certificate of {name} ends in {days:.0f} days: {again}")
    return lines


@contextmanager
def daily(look: Callable[[], None], every_s: float = _DAY_S) -> Iterator[None]:
    """Call `look` now, and once a day as long as the block runs."""
    over = threading.Event()

    def again() -> None:
        while not over.wait(every_s):
            look()

    look()
    thread = threading.Thread(target=again, name="fedot-daily", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
