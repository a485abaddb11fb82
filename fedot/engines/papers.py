"""A site's kit over time: renewed, ended, and always of the one owner that the site knows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import grpc

from fedot.errors import ConfigError
from fedot.journal import write_durably
from fedot.transport.identity import Kit, read_kit

__all__ = ["Papers", "channel_credentials"]

_PINNED = "owner"


class Papers:
    """A kit, its key, and the owner whom this site trusts.

    Args:
        kit: the kit's file; it is read again for every connection, so that a renewed one is used.
        key: the private key.
        home: where the owner's fingerprint is kept.

    Raises:
        ConfigError: the kit is damaged, or another owner's than this home's.
    """

    def __init__(self, kit: Path, key: Path, home: Path) -> None:
        self._path, self._key = kit, key
        self.first = read_kit(kit)
        self._seen = self.first
        self._refuse_another_owner(_pinned(home) or self.first.owner, home)

    def credentials(self) -> grpc.ChannelCredentials:
        """TLS with the kit as it is now.

        Raises:
            ConfigError: its certificate has ended, or it is another owner's.
        """
        kit = read_kit(self._path)
        if kit.owner != self.first.owner:
            raise ConfigError(_another(self._path, kit.owner, self.first.owner))
        self._seen = kit
        return channel_credentials(kit, self._path, self._key)

    def changed(self) -> bool:
        """Is the kit another one than that of the last connection?"""
        try:
            return read_kit(self._path) != self._seen
        except ConfigError:
            # Somebody is just copying it here; the one that is in use goes on.
            return False

    def pin(self, home: Path, say: Callable[[str], None]) -> None:
        """Trust this owner from now on; a person is told at the first time."""
        if _pinned(home) is None:
            write_durably(home / _PINNED, f"{self.first.owner}\n".encode())
            say(f"owner: {self.first.owner}; have you compared it by phone? It is kept from now on")

    def _refuse_another_owner(self, pinned: str, home: Path) -> None:
        if self.first.owner != pinned:
            text = _another(self._path, self.first.owner, pinned)
            raise ConfigError(
                f"{text} If the owner has read the new line to you by phone, delete "
                f"{home / _PINNED}; keep everything else there."
            )


def channel_credentials(kit: Kit, path: Path, key: Path) -> grpc.ChannelCredentials:
    """TLS with a kit whose certificate is good now: a handshake would not say why it fails.

    Raises:
        ConfigError: it has ended, or the key is another one's.
    """
    days = kit.days_left(datetime.now(UTC))
    if days <= 0:
        raise ConfigError(
            f"the certificate in {path} ended {-days:.0f} days ago. Renew it: fedot pki request "
            f"--site {kit.site}, and put the new kit in its place."
        )
    return kit.channel_credentials(key)


def _pinned(home: Path) -> str | None:
    try:
        return (home / _PINNED).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None


def _another(path: Path, found: str, known: str) -> str:
    return (
        f"{path} is of the owner {found}; this site knows the owner {known}. Somebody else may "
        "have made the kit; nothing was sent."
    )
