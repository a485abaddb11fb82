"""The one message of a call that has one: taken while somebody looks at the clock, and read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from fedot.errors import PeerTimeout, TransportError, WireError
from fedot.transport.errors import Denied
from fedot.transport.stall import Watched

__all__ = ["one_message", "say_why"]

_Kind = TypeVar("_Kind", bound=Message)


def one_message(kind: type[_Kind], messages: Iterator[bytes], watched: Watched) -> _Kind:
    """The request of a call that has one.

    Args:
        kind: what it must be.
        messages: all that the peer sends.
        watched: cuts the call off if nothing comes.

    Raises:
        WireError: there is none or a second one, or it is none of that kind.
        TransportError: the call broke off before it was there.
    """
    try:
        found = list(islice(messages, 2))
    except grpc.RpcError as error:
        say_why(watched)
        raise TransportError("the call broke off before its request was there.") from error
    if len(found) != 1:
        # Cut off, it may also look like a peer that has said all.
        say_why(watched)
        raise WireError(f"a call with {len(found)} or more requests; it must have one.")
    # Not by gRPC: a message that cannot be read is wrong for good.
    try:
        return kind.FromString(found[0])
    except DecodeError as error:
        raise WireError(
            f"a {kind.DESCRIPTOR.name} cannot be read; both sides may have different versions."
        ) from error


def say_why(watched: Watched) -> None:
    """Raise what a call was cut off for, if it was.

    Raises:
        Denied: whoever calls is not admitted any more.
        PeerTimeout: nothing came for too long.
    """
    if watched.forbidden:
        raise Denied("the certificate is not admitted any more; the call was cut off.")
    if watched.stalled:
        raise PeerTimeout("the call did not move for too long and was cut off; go on later.")
