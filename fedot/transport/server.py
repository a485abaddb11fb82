"""The gRPC server: every call is identified, allowed, limited, answered, and written down.

Design note: `_Door.opened` stands before every call, bulk streams too, so that none can forget it.
A call that is in no table here does not exist. All are calls with a stream of requests, also those
that have one: on the wire that is the same, but gRPC would hold a thread until a single request is
there, before it asks us anything, and whoever is not let in must hold none and have nothing read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc

from fedot.errors import ConfigError, FedotError, ProtocolError, WireError
from fedot.transport import fedot_pb2 as pb
from fedot.transport.asked import binding_details, details_of
from fedot.transport.authorize import Action, Asked
from fedot.transport.binding import Binding
from fedot.transport.bulk import Bulk, Caller
from fedot.transport.errors import Denied, answering
from fedot.transport.frames import APPEND, DOWNLOAD, place_in
from fedot.transport.limits import Gate
from fedot.transport.members import Peer
from fedot.transport.message import one_message
from fedot.transport.options import server_options
from fedot.transport.refusals import Refusals
from fedot.transport.server_tls import certificate_of
from fedot.transport.service import Hub, Service
from fedot.transport.stall import StallWatch

__all__ = ["listening"]

# A site that waits holds a thread, and a transfer another.
_MOST_THREADS = 512
_STOP_GRACE_S = 2.0
_SERVICE = "fedot.v1.Federation"


@dataclass(frozen=True, slots=True)
class _Call:
    """One control call.

    Attributes:
        action: what roles and hooks know it as.
        request: its message.
        told: which fields of the request a hook is shown beside its binding.
    """

    action: Action
    method: Callable[[Service, Any, Peer], Any]
    request: type[Any]
    told: tuple[str, ...] = ()


_CALLS: Mapping[str, _Call] = {
    "Hello": _Call("hello", Service.hello, pb.HelloRequest, ("dataset_id", "version")),
    "Next": _Call("next", Service.next, pb.NextRequest, ("run_id",)),
    "Report": _Call("report", Service.report, pb.ReportRequest, ("run_id", "round", "phase")),
    "Leave": _Call("leave", Service.leave, pb.LeaveRequest, ("run_id",)),
    "CreateUpload": _Call("upload", Service.create_upload, pb.CreateUploadRequest, ("size",)),
    "QueryUpload": _Call("upload", Service.query_upload, pb.UploadRef),
    "CommitUpload": _Call("upload", Service.commit_upload, pb.UploadRef),
    "ListFiles": _Call("download", Service.list_files, pb.FilesRequest),
    "SubmitJob": _Call("submit", Service.submit_job, pb.SubmitRequest, ("name",)),
    "ListJobs": _Call("list", Service.list_jobs, pb.JobRef),
    "ShowJob": _Call("show", Service.show_job, pb.JobRef, ("job_id",)),
    "ResumeJob": _Call("resume", Service.resume_job, pb.JobRef, ("job_id",)),
    "AbortJob": _Call("abort", Service.abort_job, pb.JobRef, ("job_id",)),
    "RollBack": _Call("roll_back", Service.roll_back, pb.RollBackRequest, ("job_id", "round")),
}


@contextmanager
def listening(address: str, credentials: grpc.ServerCredentials, hub: Hub) -> Iterator[str]:
    """Answer calls as long as the block runs.

    Args:
        address: HOST:PORT; port 0 takes a free one.
        credentials: TLS that asks for a certificate.
        hub: what calls are answered from.

    Yields:
        HOST:PORT as it is.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    options = server_options(hub.limits)
    workers = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="fedot-call")
    server = grpc.server(workers, options=options)
    with StallWatch(hub.limits.stall_timeout_s) as watch:
        server.add_generic_rpc_handlers(_handlers(hub, watch))
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {address}: is it taken, or not this machine's? Name another "
                "--listen."
            ) from error
        server.start()
        try:
            yield f"{address.rpartition(':')[0]}:{port}"
        finally:
            # Who waits for a task holds a thread.
            hub.board.shut()
            server.stop(_STOP_GRACE_S).wait()
            # Whoever still answers uses what the caller closes next.
            workers.shutdown()


def _handlers(hub: Hub, watch: StallWatch) -> tuple[grpc.GenericRpcHandler, ...]:
    service, gate = Service(hub), Gate(hub.limits)
    door = _Door(hub, gate)

    def bulk(peer: Peer) -> Bulk:
        def allow(asked: pb.DownloadRequest) -> None:
            door.allow(peer, _as(peer, "download"), details_of(asked, ("name",)))
            service.refuse_unless_readable(asked.binding, peer)

        released = partial(door.released, peer)
        return Bulk(hub.uploads, hub.shelf, gate, watch, hub.telemetry, allow, released)

    def control(call: _Call) -> grpc.RpcMethodHandler:
        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with (
                answering(context),
                door.opened(context, call.action) as peer,
                gate.open_call(peer.name),
            ):
                allowed = door.caller(peer).still_allowed
                with watch.watching(context.cancel, allowed) as watched:
                    request = one_message(call.request, messages, watched)
                door.allow(peer, _as(peer, call.action), details_of(request, call.told))
                return call.method(service, request, peer)

        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=_serialized)

    def append(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with answering(context), door.opened(context, "upload") as peer:
            door.allow(peer, "upload", _upload_details(hub, context))
            yield from bulk(peer).append(door.caller(peer), messages, context)

    def download(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with answering(context), door.opened(context, "download") as peer:
            yield from bulk(peer).download(door.caller(peer), messages, context)

    calls = {name: control(call) for name, call in _CALLS.items()}
    streams = {
        APPEND.rpartition("/")[2]: grpc.stream_stream_rpc_method_handler(append),
        DOWNLOAD.rpartition("/")[2]: grpc.stream_stream_rpc_method_handler(download),
    }
    return (
        grpc.method_handlers_generic_handler(_SERVICE, calls),
        grpc.method_handlers_generic_handler(APPEND.split("/")[1], streams),
    )


class _Door:
    """Who calls, whether they may, and what is written down of it."""

    def __init__(self, hub: Hub, gate: Gate) -> None:
        self._hub, self._gate = hub, gate
        self._refusals = Refusals(hub.audit, hub.telemetry)

    def _let_in(self, context: grpc.ServicerContext) -> Peer:
        try:
            return self._hub.members.peer_of(certificate_of(context), datetime.now(UTC))
        except ProtocolError as error:
            raise Denied(str(error)) from error

    def allow(self, peer: Peer, action: Action, details: Mapping[str, str]) -> None:
        """Ask roles and hooks.

        Raises:
            Denied: one of them refuses.
        """
        try:
            self._hub.authorizer.check(Asked(peer, action, details))
        except ProtocolError as error:
            raise Denied(str(error)) from error

    def caller(self, peer: Peer) -> Caller:
        """The peer of a transfer, which is cut off when its certificate is revoked."""

        def still_allowed() -> bool:
            try:
                return not self._hub.members.is_revoked(peer.fingerprint)
            except FedotError:
                return False

        return Caller(peer.name, still_allowed)

    def released(self, peer: Peer, binding: Binding) -> None:
        """Write down that a file goes out; before its first byte."""
        self._hub.audit.record(
            "fetched" if peer.role == "owner" else "released",
            peer,
            run=binding.run_id,
            round=binding.round,
            digest=binding.digest,
        )

    @contextmanager
    def opened(self, context: grpc.ServicerContext, action: Action) -> Iterator[Peer]:
        """Around every call: who makes it, at a rate that is theirs.

        What is refused is noted here, what is allowed where it is done.

        Raises:
            Denied: nobody that the owner admitted.
            Busy: somebody who calls too often.
        """
        peer = None
        try:
            peer = self._let_in(context)
            # Before anything that costs more than this.
            self._gate.call(peer.name)
            yield peer
        except FedotError as error:
            self._refusals.note(error, peer, action, context.peer())
            raise


def _as(peer: Peer, action: Action) -> Action:
    """An owner downloads results, a site its bundle."""
    return "fetch" if (peer.role, action) == ("owner", "download") else action


def _upload_details(hub: Hub, context: grpc.ServicerContext) -> Mapping[str, str]:
    """What the bytes belong to; nothing where there is no such upload, which is refused next."""
    try:
        upload_id, _ = place_in(context.invocation_metadata())
        return binding_details(hub.uploads.owner(upload_id).message())
    except WireError:
        return {}


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
