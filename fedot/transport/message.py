"""The one message of a call that has one: read, or refused."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fedot.errors import WireError

__all__ = ["read_message"]

_Kind = TypeVar("_Kind", bound=Message)


def read_message(kind: type[_Kind], message: bytes) -> _Kind:
    """Bytes from a peer as a message.

    Raises:
        WireError: they are none of that kind.
    """
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise WireError(
            f"a {kind.DESCRIPTOR.name} cannot be read; both sides may have different versions."
        ) from error
