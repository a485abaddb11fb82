"""A data owner's record of what was spent: durable, append-only, write-ahead.

    reserve -> (train, store) -> charge -> (send)

A round is reserved before it trains and charged, with the digest of the stored update, before that
update leaves. A kill between any two steps loses nothing: what is reserved counts as spent, and the
same round goes on under the reservation it holds.

Design note: one line an entry, `crc32 json`, each fsynced, the first one together with every folder
above it. What a call finds already written it syncs once more before it builds on it: the process
that wrote it may have been killed before its own sync. A line that was cut off by a crash was never
acknowledged, so it goes; any other damage is refused, since guessing could under-count.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal
from zlib import crc32

from fedot.errors import BudgetError, ProtocolError
from fedot.privacy.accounting import SampledGaussian, epsilon_of

__all__ = ["EPSILON_SLACK", "Entry", "Ledger"]

# Two computations of the same bound may differ in their last bits.
EPSILON_SLACK = 1e-6


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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked("a+b") as file:
            entries = self._read(file)
            held = entries.get(key)
            if held is not None:
                if (held.event, held.dataset_id) != (event, dataset_id):
                    raise ProtocolError(
                        f"{key} is already reserved with another cost. A round's sampling, noise "
                        "and steps must not change; start another run."
                    )
                os.fsync(file.fileno())
                return held
            before = [e.event for e in entries.values() if e.dataset_id == dataset_id]
            total = epsilon_of([*before, event], delta)
            if total > max_epsilon + EPSILON_SLACK:
                raise BudgetError(
                    f"data set {dataset_id} has spent epsilon {epsilon_of(before, delta):.3f}; "
                    f"{key} would make it {total:.3f} and the limit is {max_epsilon:g} at delta "
                    f"{delta:g}. Nothing was trained. Take fewer steps or more noise."
                )
            if not entries:
                # Before the first entry: whoever finds one takes the file to be there for good.
                _sync_folders(self.path.parent)
            _append(file, {"reserve": key, "dataset_id": dataset_id, "event": event.to_json()})
            return Entry(key, dataset_id, event)

    def charge(self, key: str, digest: str) -> None:
        """Spend a reservation on one stored update, before it is sent.

        Raises:
            ProtocolError: nothing is reserved, or it was spent on another update.
        """
        if not self.path.exists():
            raise ProtocolError(f"{key} has no reservation; reserve before training.")
        with self._locked("r+b") as file:
            held = self._read(file).get(key)
            if held is None:
                raise ProtocolError(f"{key} has no reservation; reserve before training.")
            if held.digest == digest:
                os.fsync(file.fileno())
                return
            if held.digest is not None:
                raise ProtocolError(
                    f"{key} was charged for another update; one reservation releases one update. "
                    "Send the stored one again."
                )
            _append(file, {"charge": key, "digest": digest})

    def entries(self) -> list[Entry]:
        """Everything that was reserved, oldest first."""
        if not self.path.exists():
            return []
        with self._locked("rb") as file:
            return list(self._read(file).values())

    def epsilon(self, dataset_id: str, delta: float) -> float:
        """What a data set has spent, reservations included."""
        return epsilon_of((e.event for e in self.entries() if e.dataset_id == dataset_id), delta)

    @contextmanager
    def _locked(self, mode: Literal["rb", "r+b", "a+b"]) -> Iterator[BinaryIO]:
        with self.path.open(mode) as file:
            fcntl.flock(file, fcntl.LOCK_SH if mode == "rb" else fcntl.LOCK_EX)
            yield file

    def _read(self, file: BinaryIO) -> dict[str, Entry]:
        """Every entry; leaves the file where the next one belongs."""
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        entries: dict[str, Entry] = {}
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                _apply(entries, line)
            except (KeyError, TypeError, ValueError) as error:
                raise ProtocolError(
                    f"ledger {self.path} is damaged in line {number}. What was spent cannot be "
                    "known from it: restore it from a backup; do not delete it."
                ) from error
        file.seek(whole)
        return entries


def _apply(entries: dict[str, Entry], line: bytes) -> None:
    """Take one line in; a ValueError or KeyError if it cannot stand here."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % crc32(text):
        raise ValueError("checksum")
    raw = json.loads(text)
    if "reserve" in raw:
        if raw["reserve"] in entries:
            raise ValueError("reserved twice")
        event = SampledGaussian.from_json(raw["event"])
        entries[raw["reserve"]] = Entry(raw["reserve"], raw["dataset_id"], event)
    else:
        held = entries[raw["charge"]]
        if held.digest is not None:
            raise ValueError("charged twice")
        entries[held.key] = replace(held, digest=raw["digest"])


def _append(file: BinaryIO, raw: dict[str, Any]) -> None:
    text = json.dumps(raw, sort_keys=True).encode()
    # Takes away what a crash left of a line.
    file.truncate()
    file.write(b"%08x %s\n" % (crc32(text), text))
    file.flush()
    os.fsync(file.fileno())


def _sync_folders(folder: Path) -> None:
    """Make a folder's entry last, and those of all folders above it, which may be as new."""
    for each in (folder, *folder.parents):
        # One that we may not read is one that we did not make.
        with suppress(PermissionError):
            descriptor = os.open(each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
