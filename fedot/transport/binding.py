"""What a transfer belongs to: run, round, site and digest, and what files may be called.

Everything here may come from a peer, so it is checked before it is used for anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import fedot.transport.fedot_pb2 as wire
from fedot.errors import WireError

__all__ = ["Binding", "File", "check_name"]

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LONGEST_SITE = 63


@dataclass(frozen=True, slots=True)
class Binding:
    """What a transfer belongs to.

    Attributes:
        round: 0 for the run's bundle, or a job's results.
        digest: SHA-256 of what travels, or of the manifest that names it.

    Raises:
        WireError: a part is not what it must be.
    """

    run_id: str
    round: int
    site: str
    digest: str

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.run_id):
            raise WireError("a binding's run must be 1 to 64 letters, digits, - and _.")
        if not _DIGEST.fullmatch(self.digest):
            raise WireError("a binding's digest must be SHA-256 as 64 hex digits.")
        if not 0 < len(self.site) <= _LONGEST_SITE:
            raise WireError(f"a binding's site must be 1 to {_LONGEST_SITE} characters.")
        if not 0 <= self.round < 2**32:
            raise WireError("a binding's round must be a whole number below 2^32.")

    @classmethod
    def of(cls, message: wire.Binding) -> Binding:
        """Check what came over the wire."""
        return cls(message.run_id, message.round, message.site, message.digest)

    def message(self) -> wire.Binding:
        """As it goes over the wire."""
        return wire.Binding(
            run_id=self.run_id, round=self.round, site=self.site, digest=self.digest
        )


@dataclass(frozen=True, slots=True)
class File:
    """A file on offer."""

    name: str
    size: int
    sha256: str


def check_name(name: str) -> str:
    """A file's name that cannot leave its folder.

    Raises:
        WireError: it has a slash, a NUL, a leading dot or another character that it must not have.
    """
    if not _NAME.fullmatch(name):
        raise WireError(
            "a file's name must be 1 to 128 letters, digits, dots, - and _, with no dot in front; "
            "nothing is read or written under any other."
        )
    return name
