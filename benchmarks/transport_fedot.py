"""fedot moves the payload: `Channel` at the site, the bulk handlers and stores at the server.

Everything that a federation has is on: identity by certificate and `members.json`, limits per site,
CRC-32C of every chunk, SHA-256 of the whole, and bytes that are durable before they are
acknowledged. The sender knows its digest beforehand, as it does in a federation: an update's is in
the ledger when it is sent, a bundle's in its manifest.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any

import grpc
from transport_sides import Job, job, serve

from fedot.transport import fedot_pb2 as wire
from fedot.transport.binding import Binding
from fedot.transport.bulk import Bulk, Caller
from fedot.transport.channel import Channel
from fedot.transport.errors import answering
from fedot.transport.identity import init_owner, request_certificate, sign_request
from fedot.transport.kit import read_kit
from fedot.transport.limits import Gate, Limits
from fedot.transport.members import MEMBERS_FILE, Members
from fedot.transport.metrics import Telemetry
from fedot.transport.options import server_options
from fedot.transport.server_tls import certificate_of, server_credentials
from fedot.transport.shelf import Shelf
from fedot.transport.stall import StallWatch
from fedot.transport.upload import UploadState, UploadStore

SITE, RUN, NAME = "bench-site", "bench", "payload"
# Above the largest object of the soak.
LIMITS = Limits(max_upload_bytes=2**38)


def make_identities(work: Path) -> None:
    """The owner's folder, and a kit for the one site."""
    init_owner(work / "owner", "bench", [])
    asked = request_certificate(SITE, work / "site")
    kit = sign_request(work / "owner", asked.csr_path, asked.fingerprint, "site")
    kit.rename(work / "site" / "kit")


def channel(work: Path, port: int) -> Channel:
    kit = read_kit(work / "site" / "kit")
    key = work / "site" / f"{SITE}.key"
    credentials = lambda: kit.channel_credentials(key)  # noqa: E731
    return Channel(f"localhost:{port}", credentials, random.Random(0), give_up_after_s=60)


def binding(digest: str) -> Binding:
    return Binding(RUN, 1, SITE, digest)


def status(state: UploadState) -> wire.UploadStatus:
    return wire.UploadStatus(
        upload_id=state.upload_id,
        committed_offset=state.committed_offset,
        is_committed=state.is_committed,
    )


class Server:
    """The server's side: what an upload and a download need of it, and nothing else.

    Args:
        work: has the owner's folder.
        store: of uploads.
        committed: called when one is whole.
    """

    def __init__(self, work: Path, store: UploadStore, committed: Callable[[], object]) -> None:
        self._members = Members(work / "owner" / MEMBERS_FILE)
        self._store, self._committed = store, committed
        self._stack = ExitStack()
        enter = self._stack.enter_context
        self.shelf = Shelf()
        self._bulk = Bulk(
            store,
            self.shelf,
            Gate(LIMITS),
            enter(StallWatch(LIMITS.stall_timeout_s)),
            enter(Telemetry(self._members, lambda: (True, {}))),
            lambda asked: None,
            lambda binding: None,
        )
        self._owner = work / "owner"

    def start(self, port: int) -> None:
        """Answer the one site."""
        server = grpc.server(ThreadPoolExecutor(8), options=server_options(LIMITS))
        calls = {
            "CreateUpload": (wire.CreateUploadRequest, self._create),
            "CommitUpload": (wire.UploadRef, self._commit),
            "ListFiles": (wire.FilesRequest, self._list),
        }
        control = {name: self._control(*call) for name, call in calls.items()}
        bulk = {
            "Append": grpc.stream_stream_rpc_method_handler(self._stream(self._bulk.append)),
            "Download": grpc.stream_stream_rpc_method_handler(self._stream(self._bulk.download)),
        }
        for name, handlers in {"fedot.v1.Federation": control, "fedot.v1.Bulk": bulk}.items():
            found = grpc.method_handlers_generic_handler(name, handlers)
            server.add_generic_rpc_handlers((found,))
        server.add_secure_port(f"localhost:{port}", server_credentials(self._owner))
        server.start()
        self._stack.callback(lambda: server.stop(0).wait())

    def stop(self) -> None:
        """Answer no more."""
        self._stack.close()

    def _caller(self, context: grpc.ServicerContext) -> Caller:
        peer = self._members.peer_of(certificate_of(context), datetime.now(UTC))
        return Caller(peer.name, lambda: not self._members.is_revoked(peer.fingerprint))

    def _control(self, request: Any, answer: Callable[[Any], Any]) -> grpc.RpcMethodHandler:
        def handle(message: Any, context: grpc.ServicerContext) -> Any:
            with answering(context):
                self._caller(context)
                return answer(message)

        return grpc.unary_unary_rpc_method_handler(
            handle, request.FromString, lambda reply: reply.SerializeToString()
        )

    def _stream(self, handler: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
        def handle(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            with answering(context):
                yield from handler(self._caller(context), request, context)

        return handle

    def _create(self, request: Any) -> wire.UploadStatus:
        bound = Binding.of(request.binding)
        return status(self._store.create(bound, request.size, request.metadata_json))

    def _commit(self, request: Any) -> wire.UploadStatus:
        state = self._store.commit(request.upload_id, Binding.of(request.binding))
        self._committed()
        return status(state)

    def _list(self, request: Any) -> wire.FilesReply:
        files = self.shelf.files(Binding.of(request.binding).digest)
        reply = [wire.File(name=f.name, size=f.size, sha256=f.sha256) for f in files]
        return wire.FilesReply(files=reply)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def serve_server(mine: Job) -> None:
    # Each transfer has a world of its own.
    world = mine.work / f"fedot-{mine.port}"
    make_identities(world)
    with UploadStore(world / "uploads", LIMITS) as store:

        def committed() -> None:
            [update] = store.committed(RUN, 1)
            os.link(update.path, mine.received)
            store.drop(RUN, 1)

        server = Server(world, store, committed)
        if mine.way == "down":
            digest = digest_of(mine.payload)
            server.shelf.put(digest, {NAME: mine.payload}, {NAME: digest})
        server.start(mine.port)
        serve(None)
        server.stop()


def serve_client(mine: Job) -> None:
    bound = binding(digest_of(mine.payload))
    with channel(mine.work / f"fedot-{mine.port}", mine.port) as opened:

        def download() -> None:
            [file] = opened.files(bound)
            opened.download(bound, file, mine.received)

        serve(download if mine.way == "down" else lambda: opened.upload(bound, mine.payload))


def main() -> None:
    mine = job()
    (serve_server if mine.side == "server" else serve_client)(mine)


if __name__ == "__main__":
    main()
