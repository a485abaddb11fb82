"""A server with real TLS that has the bulk methods and only the control calls around them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from fedot.transport import fedot_pb2 as wire
from fedot.transport.binding import Binding
from fedot.transport.bulk import Bulk, Caller
from fedot.transport.channel import Channel
from fedot.transport.errors import Denied, answering
from fedot.transport.frames import APPEND, DOWNLOAD
from fedot.transport.identity import (
    certificate_of,
    init_owner,
    read_kit,
    request_certificate,
    server_credentials,
    sign_request,
)
from fedot.transport.limits import Gate, Limits
from fedot.transport.members import Members
from fedot.transport.options import server_options
from fedot.transport.shelf import Shelf
from fedot.transport.stall import StallWatch
from fedot.transport.upload import UploadState, UploadStore

Handler = Callable[..., Any]


def make_parties(folder: Path, *sites: str) -> Path:
    """An owner's folder, and one for each site beside it."""
    init_owner(folder / "pki", "A Model Owner", ["fl.example.org"])
    for site in sites:
        request = request_certificate(site, folder / site)
        sign_request(folder / "pki", request.csr_path, request.fingerprint, "site")
    return folder


def _any(*_: object) -> None:
    """Everything may be downloaded, and nothing is noted."""


class Counts:
    """What went over the wire."""

    def __init__(self) -> None:
        self.in_bytes = self.out_bytes = self.downloads = 0

    def received(self, site: str, num_bytes: int) -> None:
        self.in_bytes += num_bytes

    def sent(self, site: str, num_bytes: int) -> None:
        self.out_bytes += num_bytes

    def downloaded(self, site: str) -> None:
        self.downloads += 1


class BulkServer(grpc.GenericRpcHandler):
    """Bulk transfers for the parties in a folder; a context manager that stops it."""

    def __init__(self, parties: Path, store: Path, limits: Limits | None = None, port: int = 0):
        self.parties = parties
        self.limits = limits or Limits(max_calls_per_s=1000)
        self.members = Members(parties / "pki" / "members.json")
        self.counts, self.shelf = Counts(), Shelf()
        self._undo = ExitStack()
        self.store = self._undo.enter_context(UploadStore(store, self.limits))
        self.gate = Gate(self.limits)
        watch = self._undo.enter_context(StallWatch(self.limits.stall_timeout_s))
        self.bulk = Bulk(self.store, self.shelf, self.gate, watch, self.counts, _any, _any)
        pool = self._undo.enter_context(ThreadPoolExecutor(16))
        self._server = grpc.server(pool, options=server_options(self.limits))
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_secure_port(
            f"127.0.0.1:{port}", server_credentials(parties / "pki")
        )
        self._server.start()
        self._undo.callback(lambda: self._server.stop(0).wait())

    def __enter__(self) -> BulkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._undo.close()

    def channel(self, site: str, port: int | None = None, **settings: Any) -> Channel:
        """A site's channel; it gives up soon, unless told otherwise."""
        settings = {"give_up_after_s": 20.0, "stall_timeout_s": 10.0, **settings}
        return Channel(
            f"127.0.0.1:{port or self.port}",
            lambda: self.credentials(site),
            random.Random(1),
            chunk_bytes=self.limits.chunk_bytes,
            **settings,
        )

    def credentials(self, site: str) -> grpc.ChannelCredentials:
        kit = read_kit(self.parties / "pki" / f"{site}.kit.json")
        return kit.channel_credentials(self.parties / site / f"{site}.key")

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method == APPEND:
            return grpc.stream_stream_rpc_method_handler(self._streamed(self.bulk.append))
        if details.method == DOWNLOAD:
            return grpc.stream_stream_rpc_method_handler(self._streamed(self.bulk.download))
        control: dict[str, tuple[type[Any], Handler]] = {
            "CreateUpload": (wire.CreateUploadRequest, self._create),
            "QueryUpload": (wire.UploadRef, self._query),
            "CommitUpload": (wire.UploadRef, self._commit),
            "ListFiles": (wire.FilesRequest, self._files),
        }
        kind, handler = control[details.method.rpartition("/")[2]]
        return grpc.unary_unary_rpc_method_handler(
            self._controlled(handler),
            request_deserializer=kind.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _caller(self, context: grpc.ServicerContext) -> Caller:
        peer = self.members.peer_of(certificate_of(context), datetime.now(UTC))
        return Caller(peer.name, lambda: not self.members.is_revoked(peer.fingerprint))

    def _streamed(self, method: Handler) -> Handler:
        def handle(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            with answering(context):
                caller = self._caller(context)
                self.gate.call(caller.site)
                yield from method(caller, request, context)

        return handle

    def _controlled(self, method: Handler) -> Handler:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            with answering(context):
                caller = self._caller(context)
                self.gate.call(caller.site)
                binding = Binding.of(request.binding)
                if binding.site != caller.site:
                    raise Denied("the binding is another site's.")
                return method(request, binding)

        return handle

    def _create(self, request: wire.CreateUploadRequest, binding: Binding) -> wire.UploadStatus:
        return status(self.store.create(binding, request.size, request.metadata_json))

    def _query(self, request: wire.UploadRef, binding: Binding) -> wire.UploadStatus:
        return status(self.store.query(request.upload_id, binding))

    def _commit(self, request: wire.UploadRef, binding: Binding) -> wire.UploadStatus:
        return status(self.store.commit(request.upload_id, binding))

    def _files(self, request: wire.FilesRequest, binding: Binding) -> wire.FilesReply:
        files = self.shelf.files(binding.digest)
        return wire.FilesReply(
            files=[wire.File(name=f.name, size=f.size, sha256=f.sha256) for f in files]
        )


def status(state: UploadState) -> wire.UploadStatus:
    return wire.UploadStatus(
        upload_id=state.upload_id,
        committed_offset=state.committed_offset,
        is_committed=state.is_committed,
    )
