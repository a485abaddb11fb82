"""A site's way to the server: control calls and transfers that outlive every broken connection.

Design note: a connection that broke is not mended but made anew from `credentials`, so that a
certificate that was renewed meanwhile is used. Calls that still run on the old one are left alone;
it is closed when the last of them has ended. There is one timeout, for whatever does not move.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

import fedot.transport.fedot_pb2 as wire
from fedot.errors import PeerTimeout, TransportError, WireError
from fedot.transport.binding import Binding, File, check_name
from fedot.transport.draft import Draft
from fedot.transport.errors import OutOfStep, UnknownUpload, error_of
from fedot.transport.frames import APPEND, DOWNLOAD, offset_in, place_metadata, unframe
from fedot.transport.options import channel_options
from fedot.transport.retries import OnRetry, Retries
from fedot.transport.sending import Sending, Source
from fedot.transport.stall import Pace, StallWatch

__all__ = ["Channel", "Done"]

Done = Callable[[int, int], None]
"""Called as `progress(bytes done, bytes in all)`; an error that it raises ends the transfer."""

_CONTROL = "/fedot.v1.Federation/"
_Reply = TypeVar("_Reply", bound=Message)


@dataclass
class _Link:
    channel: grpc.Channel
    num_calls: int = 0
    is_stale: bool = False


def _quiet(done: int, total: int) -> None:
    """Show nothing."""


class Channel:
    """A channel to one server. Thread-safe; a context manager that closes it.

    Args:
        server: host and port.
        credentials: asked for every new connection.
        rng: spreads the waiting times.
        stall_timeout_s: whatever has not moved for so long is broken off and tried again.
        chunk_bytes: most of a file in one message.
        give_up_after_s: without progress; None: try for ever.
        proxy: an HTTP proxy; None: what the environment says (`http_proxy`, `no_proxy`).
        sleep: waits between tries; an error that it raises ends the trying.
        clock: seconds, never backwards.
        on_retry: told why it waits; from any thread that calls.
    """

    def __init__(
        self,
        server: str,
        credentials: Callable[[], grpc.ChannelCredentials],
        rng: random.Random,
        stall_timeout_s: float = 30.0,
        chunk_bytes: int = 2**20,
        give_up_after_s: float | None = None,
        proxy: str | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        on_retry: OnRetry = lambda error, wait_s: None,
    ):
        self._server, self._credentials = server, credentials
        self._timeout_s, self._chunk_bytes = stall_timeout_s, chunk_bytes
        self._options = channel_options(chunk_bytes, stall_timeout_s, proxy)
        self._retries = Retries(rng, give_up_after_s, sleep, clock, on_retry)
        self._guard = threading.Lock()
        self._link: _Link | None = None
        self._watch = StallWatch(stall_timeout_s)

    def close(self) -> None:
        """Close the connection; calls that still run fail."""
        with self._guard:
            link, self._link = self._link, None
        if link is not None:
            link.channel.close()
        self._watch.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reconnect(self) -> None:
        """Use a new connection, with fresh credentials, from the next call on."""
        with self._guard:
            link, self._link = self._link, None
            if link is not None:
                self._retire(link)

    def call(
        self, method: str, request: Message, reply: type[_Reply], wait_s: float = 0.0
    ) -> _Reply:
        """A control call, tried again until the server answers.

        Args:
            method: as in fedot.proto.
            request: what to send; the server must not mind to get it twice.
            reply: what to get.
            wait_s: how long the server may take beside the one timeout.

        Raises:
            TransportError: nothing came of it in `give_up_after_s`.
            ProtocolError: the server refuses it for good.
            WireError: the server finds it wrong.
        """
        return self._retries.run(lambda: self._once(method, request, reply, wait_s))

    def tell(self, method: str, request: Message, reply: type[_Reply]) -> _Reply:
        """A control call that is made once: for what is of no use later.

        Raises:
            FedotError: as `call`.
        """
        return self._once(method, request, reply)

    def files(self, binding: Binding) -> Sequence[File]:
        """What the server offers; names are safe to use in a folder.

        Raises:
            WireError: a name or digest is not.
        """
        request = wire.FilesRequest(binding=binding.message())
        found = self.call("ListFiles", request, wire.FilesReply).files
        for each in found:
            # Its digest has the form that a binding's has.
            Binding(binding.run_id, binding.round, binding.site, each.sha256)
        return [File(check_name(each.name), each.size, each.sha256) for each in found]

    def download(self, binding: Binding, file: File, to: Path, progress: Done = _quiet) -> None:
        """Download a file to `to`, which is there whole and checked afterwards.

        What came before a break, also of this process, is not asked for again.

        Raises:
            WireError: it is not what was announced.
            ProtocolError: the server refuses it for good.
            ConfigError: the disk does not take it.
        """
        with Draft(to, file.size, file.sha256) as draft:
            while True:
                self._retries.run(
                    lambda: self._fetch(binding, file, draft, progress), lambda: draft.offset
                )
                if draft.finish():
                    return

    def upload(
        self,
        binding: Binding,
        source: Path | bytes | Source,
        metadata_json: str = "{}",
        progress: Done = _quiet,
    ) -> wire.UploadStatus:
        """Upload what `binding.digest` names, until the server has committed it.

        Raises:
            ProtocolError: the server refuses it for good: closed round, another update.
            WireError: the server finds it wrong: too large, another digest.
            ConfigError: the source cannot be read.
        """
        reached = 0

        def done(offset: int, size: int) -> None:
            nonlocal reached
            reached = max(reached, offset)
            progress(offset, size)

        with source if isinstance(source, Source) else Source(source) as opened:
            request = wire.CreateUploadRequest(
                binding=binding.message(), size=opened.size, metadata_json=metadata_json
            )
            return self._retries.run(lambda: self._send(request, opened, done), lambda: reached)

    def _send(
        self, request: wire.CreateUploadRequest, source: Source, progress: Done
    ) -> wire.UploadStatus:
        status = self._once("CreateUpload", request, wire.UploadStatus)
        if status.committed_offset > source.size:
            raise WireError("the server has more of the update than there is; ask the model owner.")
        progress(status.committed_offset, source.size)
        if status.is_committed:
            return status
        try:
            if status.committed_offset < source.size:
                self._append(status, source, progress)
            ref = wire.UploadRef(upload_id=status.upload_id, binding=request.binding)
            return self._once("CommitUpload", ref, wire.UploadStatus)
        except UnknownUpload as error:
            # The server lost or dropped it; creating it again says whether it still wants it.
            raise OutOfStep(str(error)) from error

    def _append(self, status: wire.UploadStatus, source: Source, progress: Done) -> None:
        offset = status.committed_offset
        sending = Sending(source, offset, Pace(self._chunk_bytes, self._timeout_s))
        place = place_metadata(status.upload_id, offset)
        with self._linked() as channel:
            call = channel.stream_stream(APPEND)(sending.messages(), metadata=place)
            try:
                for acknowledgement in self._moving(call):
                    sending.acknowledge(offset_in(acknowledgement))
                    progress(sending.acknowledged, source.size)
            finally:
                sending.end()
                call.cancel()
        if sending.error is not None:
            raise sending.error

    def _fetch(self, binding: Binding, file: File, draft: Draft, progress: Done) -> None:
        progress(draft.offset, file.size)
        if draft.offset == file.size:
            return
        request = wire.DownloadRequest(
            binding=binding.message(), name=file.name, offset=draft.offset
        )
        with self._linked() as channel:
            call = channel.unary_stream(DOWNLOAD)(request.SerializeToString())
            try:
                for message in self._moving(call):
                    draft.write(unframe(message, self._chunk_bytes))
                    progress(draft.offset, file.size)
            finally:
                call.cancel()
        if draft.offset < file.size:
            raise TransportError("the server ended a download too early; it is asked for again.")

    def _moving(self, call: grpc.Call) -> Iterator[bytes]:
        """All answers of a call, which is broken off when none comes for too long."""
        with self._watch.watching(call.cancel) as watched:
            try:
                for answer in call:
                    watched.moved()
                    yield answer
                    watched.moved()
            except grpc.RpcError as error:
                if watched.stalled:
                    raise PeerTimeout(
                        f"the server sent nothing for {self._timeout_s:g} s; trying again."
                    ) from error
                raise

    def _once(
        self, method: str, request: Message, reply: type[_Reply], wait_s: float = 0.0
    ) -> _Reply:
        with self._linked() as channel:
            call = channel.unary_unary(
                _CONTROL + method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=reply.FromString,
            )
            answer: _Reply = call(request, timeout=self._timeout_s + wait_s)
            return answer

    @contextmanager
    def _linked(self) -> Iterator[grpc.Channel]:
        """The connection, for one call; its errors become ours."""
        link = self._enter()
        try:
            yield link.channel
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                with self._guard:
                    self._retire(link)
            raise error_of(error) from error
        finally:
            with self._guard:
                link.num_calls -= 1
                if link.is_stale and not link.num_calls:
                    link.channel.close()

    def _enter(self) -> _Link:
        with self._guard:
            if self._link is None:
                credentials = self._credentials()
                self._link = _Link(
                    grpc.secure_channel(self._server, credentials, options=self._options)
                )
            self._link.num_calls += 1
            return self._link

    def _retire(self, link: _Link) -> None:
        """No new calls on this one; the caller holds the guard."""
        link.is_stale = True
        if self._link is link:
            self._link = None
        if not link.num_calls:
            link.channel.close()
