"""Errors on the wire: the server's into status codes, and status codes into a site's errors.

The table is in docs/transport.md. A message travels as it is: it says what is, what must be and
what to do, and never holds data. What is not a `FedotError` stays in the server's log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from fedot.errors import FedotError, PeerTimeout, ProtocolError, TransportError, WireError

__all__ = ["Busy", "Denied", "OutOfStep", "UnknownUpload", "answering", "error_of", "status_of"]

RETRY_AFTER = "retry-after-s"
_LONGEST_RETRY_S = 3600.0
_log = logging.getLogger(__name__)

_Status = grpc.StatusCode


class Busy(TransportError):
    """The server has no room for this now.

    Args:
        text: what is, what must be, what to do.
        retry_after_s: when it is worth another try.
    """

    def __init__(self, text: str, retry_after_s: float):
        super().__init__(text)
        self.retry_after_s = retry_after_s


class OutOfStep(TransportError):
    """The two sides have different offsets; the server's must be asked for again."""


class Denied(ProtocolError):
    """This peer may not do this, whatever it says."""


class UnknownUpload(WireError):
    """There is no such upload; it was never created, or its round has been closed."""


# The first that fits counts, so that the narrow ones stand before the wide ones.
_TO_STATUS: tuple[tuple[type[FedotError], grpc.StatusCode], ...] = (
    (Busy, _Status.RESOURCE_EXHAUSTED),
    (OutOfStep, _Status.ABORTED),
    (PeerTimeout, _Status.DEADLINE_EXCEEDED),
    (TransportError, _Status.UNAVAILABLE),
    (Denied, _Status.PERMISSION_DENIED),
    (ProtocolError, _Status.FAILED_PRECONDITION),
    (UnknownUpload, _Status.NOT_FOUND),
    (WireError, _Status.INVALID_ARGUMENT),
)

_TO_ERROR: dict[grpc.StatusCode, type[FedotError]] = {
    _Status.ABORTED: OutOfStep,
    _Status.DEADLINE_EXCEEDED: PeerTimeout,
    _Status.PERMISSION_DENIED: Denied,
    _Status.UNAUTHENTICATED: Denied,
    _Status.FAILED_PRECONDITION: ProtocolError,
    _Status.INVALID_ARGUMENT: WireError,
    _Status.OUT_OF_RANGE: WireError,
    _Status.NOT_FOUND: UnknownUpload,
    # An older server has no such call.
    _Status.UNIMPLEMENTED: WireError,
}


def status_of(error: FedotError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """The code, text and trailing metadata by which a site hears of an error."""
    if isinstance(error, Busy):
        wait = ((RETRY_AFTER, f"{error.retry_after_s:.3f}"),)
        return _Status.RESOURCE_EXHAUSTED, str(error), wait
    for kind, code in _TO_STATUS:
        if isinstance(error, kind):
            return code, str(error), ()
    # The owner's own troubles (config, files) are not a site's business.
    return _Status.INTERNAL, "the server cannot do this now; the model owner's log says why.", ()


@contextmanager
def answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Around every handler: errors become a status, and nothing else gets out."""
    try:
        yield
    except FedotError as error:
        code, text, trailing = status_of(error)
        if code is _Status.INTERNAL:
            _log.error("a call failed: %s", error)
        context.set_trailing_metadata(trailing)
        context.abort(code, text)
    except Exception:
        _log.exception("a call failed")
        context.abort(_Status.INTERNAL, "the server failed; the model owner's log says how.")


def error_of(error: grpc.RpcError) -> FedotError:
    """What a failed call means at a site."""
    code, text = error.code(), error.details() or "no reason was given"
    if code is _Status.RESOURCE_EXHAUSTED:
        return Busy(text, _retry_after(error))
    kind = _TO_ERROR.get(code, TransportError)
    return kind(f"the server broke off: {text}" if kind is TransportError else text)


def _retry_after(error: grpc.RpcError) -> float:
    for key, value in error.trailing_metadata() or ():
        if key == RETRY_AFTER:
            try:
                wait = float(value)
            except ValueError:
                break
            # A server must not be able to put a site to sleep for good.
            return min(max(wait, 0.0), _LONGEST_RETRY_S) if math.isfinite(wait) else 1.0
    return 1.0
