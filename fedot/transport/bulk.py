"""Bulk bytes on the wire, at the server: how a chunk is framed, uploads coming in, files going out.

The handlers here are plain generators that raise `FedotError`; whoever registers them puts
`fedot.transport.errors.answering` around them and says who calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc

import fedot.transport.fedot_pb2 as wire
from fedot.errors import TransportError
from fedot.transport.binding import Binding
from fedot.transport.errors import Denied
from fedot.transport.frames import frame, offset_message, place_in, unframe
from fedot.transport.limits import Gate
from fedot.transport.message import one_message, say_why
from fedot.transport.shelf import Shelf
from fedot.transport.stall import Pace, StallWatch, Watched
from fedot.transport.upload import UploadStore

__all__ = ["Bulk", "Caller", "Meter"]

# No pause is so long that the other side, or the watch, takes it for a stall.
_NAP_S = 0.1


class Meter(Protocol):
    """What is counted; `fedot.transport.metrics.Telemetry` is one."""

    def received(self, site: str, num_bytes: int) -> None:
        """Bytes came in."""

    def sent(self, site: str, num_bytes: int) -> None:
        """Bytes went out."""

    def downloaded(self, site: str) -> None:
        """A file went out to its end."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end of a call.

    Attributes:
        site: as its certificate says.
        still_allowed: asked about once a second: is that certificate still admitted?
    """

    site: str
    still_allowed: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class Bulk:
    """The two bulk methods; whoever calls them has asked the gate for the call.

    Attributes:
        allow: raises if the caller may not download what it asks for.
        released: told that it may, and that there is such a file, before the first byte leaves.
    """

    store: UploadStore
    shelf: Shelf
    gate: Gate
    watch: StallWatch
    meter: Meter
    allow: Callable[[wire.DownloadRequest], None]
    released: Callable[[Binding], None]

    def append(
        self, caller: Caller, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Take chunks of an upload; yields acknowledgements.

        Raises:
            FedotError: as `UploadStore.append`, the limits, and a stalled or revoked peer.
        """
        upload_id, offset = place_in(context.invocation_metadata())
        with self._flow(caller, context) as flow:
            chunks = self._chunks(messages, flow)
            for durable in self.store.append(upload_id, caller.site, offset, chunks):
                yield offset_message(durable)

    def download(
        self, caller: Caller, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Send a file from an offset on.

        Raises:
            FedotError: the site may not have it, there is no such file, the limits.
        """
        with self._flow(caller, context) as flow:
            asked = one_message(wire.DownloadRequest, messages, flow.watched)
            self.allow(asked)
            binding = Binding.of(asked.binding)
            if binding.site != caller.site:
                raise Denied("a download is bound to the site that asks; this one is another's.")
            opened, file = self.shelf.open(binding.digest, asked.name, asked.offset)
            try:
                self.released(binding)
                yield from self._read(opened, asked.offset, file.size, flow)
            finally:
                os.close(opened)
            self.meter.downloaded(caller.site)

    @contextmanager
    def _flow(self, caller: Caller, context: grpc.ServicerContext) -> Iterator[_Flow]:
        with (
            self.gate.stream(caller.site),
            self.watch.watching(context.cancel, caller.still_allowed) as watched,
        ):
            yield _Flow(self.gate, caller.site, context, watched)

    def _chunks(self, messages: Iterator[bytes], flow: _Flow) -> Iterator[bytes]:
        try:
            for message in messages:
                chunk = unframe(message, self.gate.limits.chunk_bytes)
                self.meter.received(flow.site, len(chunk))
                yield chunk
                flow.passed(len(chunk))
        except grpc.RpcError as error:
            say_why(flow.watched)
            raise TransportError("the connection broke off; go on from the last offset.") from error

    def _read(self, opened: int, offset: int, size: int, flow: _Flow) -> Iterator[bytes]:
        pace = Pace(self.gate.limits.chunk_bytes, self.gate.limits.stall_timeout_s)
        os.posix_fadvise(opened, offset, 0, os.POSIX_FADV_SEQUENTIAL)
        while offset < size:
            chunk = os.pread(opened, min(pace.chunk_bytes, size - offset), offset)
            if not chunk:
                raise TransportError("the file became shorter while it was sent; ask again later.")
            began = time.monotonic()
            yield frame(chunk)
            pace.took(time.monotonic() - began)
            offset += len(chunk)
            self.meter.sent(flow.site, len(chunk))
            # It went into the connection: a peer that does not read lets nothing in.
            flow.passed(len(chunk))


@dataclass(frozen=True, slots=True)
class _Flow:
    """A transfer that is running."""

    gate: Gate
    site: str
    context: grpc.ServicerContext
    watched: Watched

    def passed(self, num_bytes: int) -> None:
        """Bytes went through; pause if that was too fast."""
        self.watched.moved()
        until = time.monotonic() + self.gate.pace(self.site, num_bytes)
        while (left := until - time.monotonic()) > 0 and self.context.is_active():
            time.sleep(min(left, _NAP_S))
            self.watched.moved()
