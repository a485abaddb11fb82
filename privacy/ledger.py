"""A data owner's record of what was spent: durable, append-only, write-ahead.

    reserve -> (train, store) -> charge -> (send)

A round is reserved before it trains and charged, with the digest of the stored update, before that
update leaves. A kill between any two steps loses nothing: what is reserved counts as spent, and the
same round goes on under the reservation it holds.

Design note: one line an entry, `crc32 json`, each fsynced. A line that was cut off by a crash was
never acknowledged, so it is removed; any other damage is refused, since guessing could under-count.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from fedot.errors import BudgetError, ProtocolError
from fedot.privacy.accounting import SampledGaussian, epsilon_of

__all__ = ["Entry", "Ledger"]

# Two computations of the same bound may differ in their last bits.
_EPSILON_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Entry:
    """One round's reservation, and what it was charged with.

    Attributes:
        key: names the round, for example `run/3`.
        dataset_id: whose records were used.
        event: what it costs.
        digest: of the stored update, or None while nothing has been charged.
    """

    key: str
    dataset_id: str
    event: SampledGaussian
    digest: str | None = None


class Ledger:
    """The ledger file of one site; safe between processes."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def reserve(
        self, key: str, dataset_id: str, event: SampledGaussian, max_epsilon: float, delta: float
    ) -> Entry:
        """Hold the cost of a round before it trains.

        Reserving the same round again is a no-op: it goes on under what it holds.

        Raises:
            BudgetError: with this round the data set's epsilon would pass `max_epsilon`; nothing
                was written.
            ProtocolError: the key is held for another event or data set.
        """
        with self._locked() as file:
            entries = self._read(file)
            held = entries.get(key)
            if held is not None:
                if (held.event, held.dataset_id) != (event, dataset_id):
                    raise ProtocolError(
                        f"{key} is already reserved with another cost. A round's sampling, noise "
                        "and steps must not change; start another run."
                    )
                return held
            before = [e.event for e in entries.values() if e.dataset_id == dataset_id]
            total = epsilon_of([*before, event], delta)
            if total > max_epsilon + _EPSILON_SLACK:
                raise BudgetError(
                    f"data set {dataset_id} has spent epsilon {epsilon_of(before, delta):.3f}; "
                    f"{key} would make it {total:.3f} and the limit is {max_epsilon:g} at delta "
                    f"{delta:g}. Nothing was trained. Take fewer steps or more noise."
                )
            entry = Entry(key, dataset_id, event)
            _append(file, {"reserve": key, "dataset_id": dataset_id, "event": event.to_json()})
            return entry

    def charge(self, key: str, digest: str) -> None:
        """Spend a reservation on one stored update, before it is sent.

        Raises:
            ProtocolError: nothing is reserved, or it was spent on another update.
        """
        with self._locked() as file:
            held = self._read(file).get(key)
            if held is None:
                raise ProtocolError(f"{key} has no reservation; reserve before training.")
            if held.digest == digest:
                return
            if held.digest is not None:
                raise ProtocolError(
                    f"{key} was charged for another update; one reservation releases one update. "
                    "Send the stored one again."
                )
            _append(file, {"charge": key, "digest": digest})

    def entries(self) -> list[Entry]:
        """Everything that was reserved, oldest first."""
        with self._locked() as file:
            return list(self._read(file).values())

    def epsilon(self, dataset_id: str, delta: float) -> float:
        """What a data set has spent, reservations included."""
        return epsilon_of((e.event for e in self.entries() if e.dataset_id == dataset_id), delta)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        with _open_durably(self.path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _read(self, file: BinaryIO) -> dict[str, Entry]:
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            _sync(file)
        entries: dict[str, Entry] = {}
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            self._apply(entries, line, number)
        return entries

    def _apply(self, entries: dict[str, Entry], line: bytes, number: int) -> None:
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % crc32(text):
            raise ProtocolError(
                f"ledger {self.path} is damaged in line {number}. What was spent cannot be known "
                "from it: restore it from a backup; do not delete it."
            )
        raw = json.loads(text)
        if "reserve" in raw:
            event = SampledGaussian.from_json(raw["event"])
            entries[raw["reserve"]] = Entry(raw["reserve"], raw["dataset_id"], event)
        else:
            held = entries[raw["charge"]]
            entries[held.key] = Entry(held.key, held.dataset_id, held.event, raw["digest"])


def _append(file: BinaryIO, raw: dict[str, Any]) -> None:
    text = json.dumps(raw, sort_keys=True).encode()
    file.seek(0, os.SEEK_END)
    file.write(b"%08x %s\n" % (crc32(text), text))
    _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _open_durably(path: Path) -> BinaryIO:
    """Open for reading and appending; a file that is new is in its folder for good."""
    new = not path.exists()
    file = path.open("a+b")
    if new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return file
