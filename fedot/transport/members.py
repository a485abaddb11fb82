"""Who the owner admitted: `members.json`, a line of text for every certificate.

Design note: whether somebody may call is asked at every call, since a connection may outlive its
certificate and its admission. The file is read again whenever it changes; one that cannot be read
lets nobody in. A site may hold several valid certificates while it renews, all for the same key: an
old one stays good until it ends. Another key under a name that is in use is refused until the name
is revoked, and a key that was revoked is never admitted again.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field, ValidationError

from fedot.config_section import Section
from fedot.errors import ConfigError, ProtocolError
from fedot.journal import write_durably
from fedot.transport.certificates import (
    fingerprint_of,
    key_fingerprint,
    leaf_of,
    name_of,
    not_after,
    public_key_of,
)

__all__ = ["MEMBERS_FILE", "Member", "Members", "Peer", "Role"]

Role = Literal["owner", "site", "observer"]
"""What somebody may do: see `fedot.transport.authorize`."""

MEMBERS_FILE = "members.json"
# Connections show the same few certificates again and again; strangers must not fill the memory.
_MOST_KEPT = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody who was let in, for this call.

    Attributes:
        name: the site's, as its certificate says.
        fingerprint: of its certificate.
    """

    name: str
    role: Role
    fingerprint: str


class Member(Section):
    """One admitted certificate.

    Attributes:
        fingerprint: of the certificate.
        key: the fingerprint of its key, the same after a renewal.
        ends: when the certificate ends.
        revoked: when it was revoked, or None.
    """

    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str = Field(min_length=1, max_length=63)
    role: Role
    key: str = Field(pattern=r"^([0-9a-f]{4}-){15}[0-9a-f]{4}$")
    admitted: AwareDatetime
    ends: AwareDatetime
    revoked: AwareDatetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Neither revoked nor past its end."""
        return self.revoked is None and now < self.ends


class _File(Section):
    format: Literal["fedot-members-1"] = "fedot-members-1"
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is read out of a certificate once."""

    fingerprint: str
    name: str
    begins: datetime
    ends: datetime


class Members:
    """The owner's list, for the server to ask and for the owner to change. Thread-safe.

    Args:
        path: `members.json`; `Members.create` makes an empty one.

    Raises:
        ConfigError: it is missing or damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        self._guard = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._by_fingerprint: dict[str, Member] = {}
        self._shown: dict[bytes, _Shown] = {}
        self._current()

    @classmethod
    def create(cls, path: Path) -> Members:
        """An empty list, durably written."""
        _write(path, ())
        return cls(path)

    def peer_of(self, pem: bytes, now: datetime) -> Peer:
        """Who shows a certificate in a TLS connection, if it is good for a call at `now`.

        Raises:
            ProtocolError: nobody admitted it, or it was revoked, has ended or not begun, or names
                somebody else than who was admitted.
            ConfigError: the list cannot be read, so nobody is let in.
        """
        shown = self._read(pem)
        member = self._current().get(shown.fingerprint)
        if member is None:
            raise ProtocolError(
                f"certificate {shown.fingerprint[:16]} was not admitted; the owner must sign or "
                "admit it."
            )
        if member.revoked is not None:
            raise ProtocolError(f"the certificate of {member.name} was revoked; ask the owner.")
        if shown.name != member.name:
            raise ProtocolError(
                f"certificate {shown.fingerprint[:16]} does not name {member.name}, for whom it "
                "was admitted; ask the owner."
            )
        if not shown.begins <= now < min(shown.ends, member.ends):
            raise ProtocolError(
                f"the certificate of {member.name} is good from {shown.begins:%Y-%m-%d %H:%M} to "
                f"{shown.ends:%Y-%m-%d %H:%M} UTC, which is not now. Renew it with `fedot pki "
                "request`, or set the clock."
            )
        return Peer(member.name, member.role, member.fingerprint)

    def is_revoked(self, fingerprint: str) -> bool:
        """Is its admission over? Also when the list does not know it any more."""
        member = self._current().get(fingerprint)
        return member is None or member.revoked is not None

    def ends_of(self, fingerprint: str) -> datetime:
        """When an admitted certificate ends.

        Raises:
            ProtocolError: the list does not know it.
        """
        member = self._current().get(fingerprint)
        if member is None:
            raise ProtocolError(f"certificate {fingerprint[:16]} was not admitted.")
        return member.ends

    def is_admitted(self, name: str) -> bool:
        """Has a name a certificate that was not revoked? It may have ended, and be renewed."""
        return any(each.name == name and each.revoked is None for each in self.all())

    def all(self) -> Sequence[Member]:
        """Every certificate that was ever admitted, oldest first."""
        return tuple(self._current().values())

    def valid(self, now: datetime | None = None) -> Sequence[Member]:
        """Those that are good now; of a renewed one, both."""
        now = now or datetime.now(UTC)
        return [member for member in self.all() if member.is_valid(now)]

    def sites(self, now: datetime | None = None) -> list[str]:
        """Names of the sites with a certificate that is good now, sorted."""
        return sorted({member.name for member in self.valid(now) if member.role == "site"})

    def add(self, pem: bytes, role: Role, now: datetime | None = None) -> Member:
        """Admit a certificate under the name that it carries; again is a no-op.

        Raises:
            ConfigError: the name is in use with another key or role, or its key was revoked.
            ProtocolError: the certificate names nobody or cannot be read.
        """
        now = now or datetime.now(UTC)
        new = Member(
            fingerprint=fingerprint_of(pem),
            name=name_of(pem),
            role=role,
            key=key_fingerprint(public_key_of(pem)),
            admitted=now,
            ends=not_after(pem),
        )
        with self._changing() as members:
            _refuse_clash(new, members, now)
            if all(member.fingerprint != new.fingerprint for member in members):
                members.append(new)
        return new

    def revoke(self, name: str, now: datetime | None = None) -> list[str]:
        """Let a name in no more: the fingerprints of its certificates that this ended.

        Raises:
            ConfigError: it has none that is not revoked.
        """
        now = now or datetime.now(UTC)
        ended = []
        with self._changing() as members:
            for place, member in enumerate(members):
                if member.name == name and member.revoked is None:
                    members[place] = member.model_copy(update={"revoked": now})
                    ended.append(member.fingerprint)
            if not ended:
                raise ConfigError(
                    f"{name[:80]!r} has no certificate to revoke; `fedot pki show` lists who has."
                )
        return ended

    def _read(self, pem: bytes) -> _Shown:
        shown = self._shown.get(pem)
        if shown is None:
            leaf = leaf_of(pem)
            begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
            shown = _Shown(fingerprint_of(pem), name_of(pem), begins, ends)
            with self._guard:
                if len(self._shown) >= _MOST_KEPT:
                    self._shown.clear()
                self._shown[pem] = shown
        return shown

    def _current(self) -> dict[str, Member]:
        """The list by fingerprint, read again if the file is another one."""
        with self._guard:
            # Looked at before it is read: a change in between is seen the next time.
            seen = _state_of(self._path)
            if seen != self._seen:
                self._seen = None
                self._by_fingerprint = {each.fingerprint: each for each in _load(self._path)}
                self._seen = seen
            return self._by_fingerprint

    @contextmanager
    def _changing(self) -> Iterator[list[Member]]:
        """The list to change, while no other process can; written at the end."""
        lock = os.open(
            self._path.with_name(f".{self._path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = _load(self._path)
            members = list(before)
            yield members
            if tuple(members) != before:
                _write(self._path, tuple(members))
        finally:
            os.close(lock)


def _refuse_clash(new: Member, members: Sequence[Member], now: datetime) -> None:
    for member in members:
        if member.key == new.key and member.revoked is not None:
            raise ConfigError(
                f"the key of {new.name} was revoked; the site must make a new one: delete "
                f"{new.name}.key there and ask again."
            )
        if member.name != new.name or not member.is_valid(now):
            continue
        if member.key != new.key:
            raise ConfigError(
                f"{new.name} has a valid certificate with another key; renew with the same key, or "
                f"run `fedot pki revoke {new.name}` first."
            )
        if member.role != new.role:
            raise ConfigError(
                f"{new.name} is {member.role} and cannot be {new.role} too; revoke it first, or "
                "use another name."
            )


def _state_of(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; without it nobody is let in. Restore it, or "
            "start with `fedot pki init`."
        ) from error
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(path: Path) -> tuple[Member, ...]:
    try:
        members = _File.model_validate_json(path.read_bytes()).members
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{path} is damaged or of another version; nobody is let in until it is restored."
        ) from error
    if len({member.fingerprint for member in members}) != len(members):
        raise ConfigError(f"{path} has a certificate twice; nobody is let in. Restore it.")
    return members


def _write(path: Path, members: tuple[Member, ...]) -> None:
    text = _File(members=members).model_dump_json(indent=1) + "\n"
    write_durably(path, text.encode())
