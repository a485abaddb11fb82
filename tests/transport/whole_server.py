"""A server with everything real but the federation above it, and callers with real certificates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import pytest

from fedot.federation.job_desk import Desk
from fedot.federation.jobs import JobQueue
from fedot.transport import fedot_pb2 as pb
from fedot.transport.audit_log import AuditLog, check_log
from fedot.transport.authorize import Authorizer, Hook
from fedot.transport.board import Board
from fedot.transport.frames import APPEND, DOWNLOAD, frame
from fedot.transport.identity import (
    init_owner,
    read_kit,
    request_certificate,
    server_credentials,
    sign_request,
)
from fedot.transport.limits import Limits
from fedot.transport.members import Members
from fedot.transport.metrics import Telemetry
from fedot.transport.notices import Posted
from fedot.transport.server import listening
from fedot.transport.service import PROTOCOL, Hub
from fedot.transport.shelf import Shelf
from fedot.transport.site_book import SiteBook
from fedot.transport.upload import UploadStore

RUN = "run-a"
CARD = '{"epsilon": null, "bytes_after": {"float32": 4}, "received_bytes": 1}'
# On loopback an answer takes milliseconds; this only ends a test that hangs.
PATIENCE_S = 30.0
ROLES: Mapping[str, str] = {"a": "site", "b": "site", "auditor": "observer"}
# Nothing in these tests is about rates but those that say so.
LIMITS = Limits(max_calls_per_s=1000, chunk_bytes=2**16, stall_timeout_s=20)


def make_pki(folder: Path) -> None:
    """An owner's folder, and one for all the others' keys."""
    init_owner(folder / "pki", "Owner", ["localhost"])
    for name, role in ROLES.items():
        asked = request_certificate(name, folder / "keys")
        sign_request(folder / "pki", asked.csr_path, asked.fingerprint, role, 90)  # type: ignore[arg-type]
    shutil.copy(folder / "pki" / "owner.key", folder / "keys" / "owner.key")


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


class Caller:
    """Somebody with a certificate, over a connection of their own."""

    def __init__(self, name: str, folder: Path, where: str) -> None:
        self.name = name
        kit = read_kit(folder / "pki" / f"{name}.kit.json")
        self.channel = grpc.secure_channel(
            where, kit.channel_credentials(folder / "keys" / f"{name}.key")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.channel.close()

    def send(self, method: str, message: bytes) -> bytes:
        """Whatever bytes, to whatever method."""
        call = self.channel.unary_unary(f"/fedot.v1.Federation/{method}")
        answer: bytes = call(message, timeout=PATIENCE_S)
        return answer

    def call(self, method: str, request: Any, reply: type[Any]) -> Any:
        return reply.FromString(self.send(method, request.SerializeToString()))

    def hello(self, dataset_id: str | None = None) -> Any:
        named = f"data-{self.name}" if dataset_id is None else dataset_id
        request = pb.HelloRequest(protocol=PROTOCOL, version="1", dataset_id=named)
        return self.call("Hello", request, pb.HelloReply)

    def next(self, run_id: str = RUN, wait_s: float = 0.0, peek: bool = False) -> Any:
        request = pb.NextRequest(run_id=run_id, wait_s=wait_s, peek=peek)
        return self.call("Next", request, pb.NextReply)

    def binding(self, content_digest: str, round: int = 1, site: str | None = None) -> Any:
        return pb.Binding(run_id=RUN, round=round, site=site or self.name, digest=content_digest)

    def create(self, binding: Any, size: int) -> Any:
        request = pb.CreateUploadRequest(binding=binding, size=size, metadata_json=CARD)
        return self.call("CreateUpload", request, pb.UploadStatus)

    def append(self, upload_id: str, content: bytes, offset: int = 0) -> list[int]:
        place = (("upload-id", upload_id), ("offset", str(offset)))
        call = self.channel.stream_stream(APPEND)
        messages = iter([frame(content)]) if content else iter([])
        answers = call(messages, metadata=place, timeout=PATIENCE_S)
        return [int.from_bytes(each, "big") for each in answers]

    def commit(self, upload_id: str, binding: Any) -> Any:
        request = pb.UploadRef(upload_id=upload_id, binding=binding)
        return self.call("CommitUpload", request, pb.UploadStatus)

    def upload(self, content: bytes, round: int = 1) -> Any:
        binding = self.binding(digest(content), round)
        status = self.create(binding, len(content))
        if not status.is_committed and status.committed_offset < len(content):
            self.append(status.upload_id, content[status.committed_offset :])
        return self.commit(status.upload_id, binding)

    def download(self, binding: Any, name: str, offset: int = 0) -> bytes:
        request = pb.DownloadRequest(binding=binding, name=name, offset=offset)
        call = self.channel.unary_stream(DOWNLOAD)
        return b"".join(m[4:] for m in call(request.SerializeToString(), timeout=PATIENCE_S))


class Net:
    """A running server."""

    def __init__(self, folder: Path, hub: Hub, queue: JobQueue, where: str) -> None:
        self.folder, self.hub, self.queue, self.where = folder, hub, queue, where
        self._stack = ExitStack()

    def caller(self, name: str) -> Caller:
        return self._stack.enter_context(Caller(name, self.folder, self.where))

    def close(self) -> None:
        self._stack.close()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The audit log's lines of a kind; its chain must be whole."""
        path = self.folder / "audit.jsonl"
        check_log(path)
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in found if line["event"] == event]

    def open_run(self, *sites: str, bundle: bytes = b"manifest") -> str:
        """A run with a bundle of one file."""
        path = self.folder / "manifest.json"
        path.write_bytes(bundle)
        self.hub.shelf.put(digest(bundle), {"manifest.json": path})
        self.hub.board.open_run(RUN, digest(bundle), {site: "{}" for site in sites})
        return digest(bundle)

    def post(
        self, round: int, *sites: str, state: bytes = b"state", most_bytes: int | None = None
    ) -> str:
        path = self.folder / f"state-{round}"
        path.write_bytes(state)
        self.hub.shelf.put(digest(state), {"state": path})
        cards = {site: "{}" for site in sites}
        posted = Posted(RUN, round, digest(state), cards, most_bytes=most_bytes)
        self.hub.board.post(posted)
        return digest(state)


@contextmanager
def running(
    folder: Path, hooks: Mapping[str, Hook] | None = None, limits: Limits = LIMITS
) -> Iterator[Net]:
    """A server in `folder`, where `make_pki` was."""
    with ExitStack() as stack:
        queue = stack.enter_context(JobQueue(folder / "jobs.sqlite"))
        uploads = stack.enter_context(UploadStore(folder / "uploads", limits))
        book = stack.enter_context(closing(SiteBook(folder / "sites.sqlite")))
        audit = stack.enter_context(AuditLog(folder / "audit.jsonl"))
        members = Members(folder / "pki" / "members.json")
        board, shelf = Board(uploads.is_committed), Shelf()
        telemetry = stack.enter_context(
            Telemetry(members, lambda: (True, {"sites": len(board.present())}))
        )
        hub = Hub(
            board=board,
            uploads=uploads,
            shelf=shelf,
            book=book,
            members=members,
            authorizer=Authorizer(hooks),
            audit=audit,
            telemetry=telemetry,
            jobs=Desk(queue, board, shelf),
            limits=limits,
        )
        credentials = server_credentials(folder / "pki")
        where = stack.enter_context(listening("localhost:0", credentials, hub))
        net = Net(folder, hub, queue, where)
        stack.callback(net.close)
        yield net


UPDATE = b"an update"


def refused(what: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        what()
    return caught.value.code(), caught.value.details()  # type: ignore[attr-defined]


def tiny_job(tmp_path: Path) -> str:
    return json.dumps(
        {
            "model": {"path": str(tmp_path / "model")},
            "data": {"owner_text": str(tmp_path / "text.jsonl")},
            "emulator": "none",
            "adapter": {"blocks": "all"},
            "privacy": {"unit": "none"},
        }
    )


# Method, action of the roles' table.
