"""Bulk bytes on the wire, at the server: how a chunk is framed, uploads coming in, files going out.

The handlers here are plain generators that raise `FedotError`; whoever registers them puts
`fedot.transport.errors.answering` around them and says who calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import google_crc32c
import grpc
from google.protobuf.message import DecodeError

from fedot.errors import PeerTimeout, TransportError, WireError
from fedot.transport import fedot_pb2 as wire
from fedot.transport.binding import Binding
from fedot.transport.errors import Denied, OutOfStep
from fedot.transport.limits import Gate
from fedot.transport.shelf import Shelf
from fedot.transport.stall import Pace, StallWatch, Watched
from fedot.transport.upload import UploadStore

__all__ = [
    "APPEND",
    "DOWNLOAD",
    "FRAME_BYTES",
    "Bulk",
    "Caller",
    "Meter",
    "frame",
    "offset_in",
    "offset_message",
    "unframe",
]

APPEND = "/fedot.v1.Bulk/Append"
DOWNLOAD = "/fedot.v1.Bulk/Download"
FRAME_BYTES = 4
UPLOAD_ID, OFFSET = "upload-id", "offset"
_OFFSET_BYTES = 8
# No pause is so long that the other side, or the watch, takes it for a stall.
_NAP_S = 0.1


def frame(chunk: bytes) -> bytes:
    """A message: CRC-32C of the chunk, then the chunk."""
    return google_crc32c.value(chunk).to_bytes(FRAME_BYTES, "big") + chunk


def unframe(message: bytes, most_bytes: int) -> bytes:
    """The chunk in a message.

    Raises:
        WireError: it is empty or too long.
        OutOfStep: it was damaged; it can be sent again.
    """
    if not FRAME_BYTES < len(message) <= FRAME_BYTES + most_bytes:
        raise WireError(
            f"a bulk message of {len(message)} bytes; it must have {FRAME_BYTES} of CRC-32C, then "
            f"1 to {most_bytes}."
        )
    chunk = message[FRAME_BYTES:]
    if google_crc32c.value(chunk) != int.from_bytes(message[:FRAME_BYTES], "big"):
        raise OutOfStep("a chunk was damaged on its way; send again from the last offset.")
    return chunk


def offset_message(offset: int) -> bytes:
    """An acknowledgement."""
    return offset.to_bytes(_OFFSET_BYTES, "big")


def offset_in(message: bytes) -> int:
    """The offset in an acknowledgement.

    Raises:
        WireError: it is none.
    """
    if len(message) != _OFFSET_BYTES:
        raise WireError(f"an acknowledgement of {len(message)} bytes; it must have 8.")
    return int.from_bytes(message, "big")


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
    """The two bulk methods.

    Attributes:
        allow: raises if a site may not download what it asks for.
    """

    store: UploadStore
    shelf: Shelf
    gate: Gate
    watch: StallWatch
    meter: Meter
    allow: Callable[[Caller, Binding], None]

    def append(
        self, caller: Caller, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Take chunks of an upload; yields acknowledgements.

        Raises:
            FedotError: as `UploadStore.append`, the limits, and a stalled or revoked peer.
        """
        upload_id, offset = _place(context.invocation_metadata())
        self.gate.call(caller.site)
        with (
            self.gate.stream(caller.site),
            self.watch.watching(context.cancel, caller.still_allowed) as watched,
        ):
            chunks = self._chunks(caller.site, messages, context, watched)
            for durable in self.store.append(upload_id, caller.site, offset, chunks):
                yield offset_message(durable)
            _say_why(watched)

    def download(
        self, caller: Caller, request: bytes, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Send a file from an offset on.

        Raises:
            FedotError: the site may not have it, there is no such file, the limits.
        """
        asked = _download_request(request)
        binding = Binding.of(asked.binding)
        if binding.site != caller.site:
            raise Denied("a download is bound to the site that asks; this one is another's.")
        self.gate.call(caller.site)
        self.allow(caller, binding)
        with (
            self.gate.stream(caller.site),
            self.watch.watching(context.cancel, caller.still_allowed) as watched,
        ):
            opened, file = self.shelf.open(binding.digest, asked.name, asked.offset)
            try:
                yield from self._read(
                    caller.site, opened, file.size, asked.offset, context, watched
                )
            finally:
                os.close(opened)
            self.meter.downloaded(caller.site)

    def _chunks(
        self,
        site: str,
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
        watched: Watched,
    ) -> Iterator[bytes]:
        try:
            for message in messages:
                chunk = unframe(message, self.gate.limits.chunk_bytes)
                watched.moved()
                self.meter.received(site, len(chunk))
                yield chunk
                self._pause(site, len(chunk), context, watched)
        except grpc.RpcError as error:
            _say_why(watched)
            raise TransportError("the connection broke off; go on from the last offset.") from error

    def _read(
        self,
        site: str,
        opened: int,
        size: int,
        offset: int,
        context: grpc.ServicerContext,
        watched: Watched,
    ) -> Iterator[bytes]:
        pace = Pace(self.gate.limits.chunk_bytes, self.gate.limits.stall_timeout_s)
        os.posix_fadvise(opened, offset, 0, os.POSIX_FADV_SEQUENTIAL)
        while offset < size:
            chunk = os.pread(opened, min(pace.chunk_bytes, size - offset), offset)
            if not chunk:
                raise TransportError("the file became shorter while it was sent; ask again later.")
            began = time.monotonic()
            yield frame(chunk)
            # It went into the connection: a peer that does not read lets nothing in.
            watched.moved()
            pace.took(time.monotonic() - began)
            offset += len(chunk)
            self.meter.sent(site, len(chunk))
            self._pause(site, len(chunk), context, watched)

    def _pause(
        self, site: str, num_bytes: int, context: grpc.ServicerContext, watched: Watched
    ) -> None:
        until = time.monotonic() + self.gate.pace(site, num_bytes)
        while (left := until - time.monotonic()) > 0 and context.is_active():
            time.sleep(min(left, _NAP_S))
            watched.moved()


def _say_why(watched: Watched) -> None:
    if watched.forbidden:
        raise Denied("the certificate is not admitted any more; the transfer was cut off.")
    if watched.stalled:
        raise PeerTimeout("the transfer did not move for too long and was cut off; go on later.")


def _place(metadata: Sequence[tuple[str, str | bytes]]) -> tuple[str, int]:
    values = [value for key, value in metadata if key == UPLOAD_ID]
    offsets = [value for key, value in metadata if key == OFFSET]
    if len(values) != 1 or len(offsets) != 1:
        raise WireError(f"an append needs {UPLOAD_ID} and {OFFSET} in its metadata, once each.")
    upload_id, offset = str(values[0]), str(offsets[0])
    if not (offset.isascii() and offset.isdigit() and len(offset) < 20):
        raise WireError("an append's offset must be a whole number of bytes.")
    return upload_id, int(offset)


def _download_request(request: bytes) -> wire.DownloadRequest:
    try:
        return wire.DownloadRequest.FromString(request)
    except DecodeError as error:
        raise WireError(
            "a download request cannot be read; it must be a DownloadRequest."
        ) from error
