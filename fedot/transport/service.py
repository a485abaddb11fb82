"""The server's side of every call: who asks, whether they may, and what they get.

Design note: one function answers each call; `_answered` wraps them all, so that no call can forget
to ask who is calling. Nothing here waits for the federation, and nothing here computes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from fedot.cards import ResultCard
from fedot.errors import ConfigError, ProtocolError, WireError
from fedot.transport import fedot_pb2 as pb
from fedot.transport.audit_log import AuditLog
from fedot.transport.authorize import Authorizer
from fedot.transport.binding import Binding
from fedot.transport.board import Board
from fedot.transport.errors import Busy, Denied
from fedot.transport.limits import Limits
from fedot.transport.members import Members, Peer
from fedot.transport.metrics import Telemetry
from fedot.transport.notices import Answer, Posted
from fedot.transport.refusals import LineRate
from fedot.transport.shelf import Shelf
from fedot.transport.site_book import SiteBook
from fedot.transport.upload import UploadState, UploadStore

__all__ = ["PROTOCOL", "Hub", "JobDesk", "Service"]

logger = logging.getLogger(__name__)

PROTOCOL = 1
"""Raised when either side could no longer understand the other."""
_LONGEST_WAIT_S = 60.0
_PHASES = ("idle", "download", "train", "store", "upload", "failed", "over")


class JobDesk(Protocol):
    """What the owner's calls are answered from; above this room."""

    def submit(self, name: str, config_yaml: str, by: str) -> pb.Job:
        """Queue a job."""
        ...

    def jobs(self) -> list[pb.Job]:
        """All jobs, oldest first."""
        ...

    def show(self, job_id: str) -> pb.Job:
        """One job, with everything about it."""
        ...

    def abort(self, job_id: str, by: str) -> pb.Job:
        """Stop a job, or take it out of the queue."""
        ...

    def resume(self, job_id: str) -> pb.Job:
        """Queue a job again that failed or was aborted."""
        ...

    def roll_back(self, job_id: str, round: int) -> pb.Job:
        """Go back to the state after an earlier round."""
        ...


@dataclass(frozen=True, slots=True)
class Hub:
    """Everything that a server's calls are answered from."""

    board: Board
    uploads: UploadStore
    shelf: Shelf
    book: SiteBook
    members: Members
    authorizer: Authorizer
    audit: AuditLog
    telemetry: Telemetry
    jobs: JobDesk
    limits: Limits


class Service:
    """The control calls of `fedot.proto`; `fedot.transport.server` asks first who is calling."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._hellos = LineRate()

    def hello(self, request: pb.HelloRequest, peer: Peer) -> pb.HelloReply:
        """Let a site in."""
        if request.protocol != PROTOCOL:
            raise WireError(
                f"the site speaks protocol {request.protocol}, the server {PROTOCOL}; install the "
                "same version of fedot on both sides."
            )
        if peer.role == "site":
            if not 0 < len(request.dataset_id) <= 200 or not request.dataset_id.isprintable():
                raise WireError(
                    "dataset_id must have 1 to 200 printable characters; see the site's policy."
                )
            hub = self._hub
            hub.book.declare(peer.name, request.dataset_id, hub.members.is_admitted)
        more = self._hellos.take(peer.name)
        if more is not None:
            named = {"dataset_id": request.dataset_id, "version": request.version}
            self._hub.audit.record("hello", peer, **named, **more)
        ends = self._hub.members.ends_of(peer.fingerprint)
        return pb.HelloReply(
            site=peer.name,
            role=peer.role,
            certificate_days_left=(ends - datetime.now(UTC)).total_seconds() / 86400,
            chunk_bytes=self._hub.limits.chunk_bytes,
            stall_timeout_s=self._hub.limits.stall_timeout_s,
        )

    def next(self, request: pb.NextRequest, peer: Peer) -> pb.NextReply:
        """What a site shall do."""
        hub = self._hub
        if not request.peek and hub.book.dataset_of(peer.name) is None:
            raise ProtocolError(f"{peer.name} has not said which data set it has; say hello first.")
        # In this order, since NaN compares with nothing.
        wait_s = min(request.wait_s, _LONGEST_WAIT_S) if request.wait_s > 0.0 else 0.0
        answer = hub.board.next_for(peer.name, request.run_id, wait_s, request.peek)
        if hub.members.is_revoked(peer.fingerprint):
            raise Denied(f"the certificate of {peer.name} was revoked while it waited.")
        return _next_reply(answer)

    def report(self, request: pb.ReportRequest, peer: Peer) -> pb.ReportReply:
        """What a site is doing."""
        if request.phase not in _PHASES or len(request.reason) > 500:
            raise WireError(f"phase must be one of {', '.join(_PHASES)}, its reason short.")
        reason = "".join(c for c in request.reason if c.isprintable())
        if request.phase == "over" and self._hub.board.is_over(request.run_id):
            self._hub.book.hear(request.run_id, peer.name)
        cancelled = self._hub.board.report(
            peer.name, request.run_id, request.round, request.phase, reason
        )
        return pb.ReportReply(cancelled=cancelled)

    def leave(self, request: pb.LeaveRequest, peer: Peer) -> pb.LeaveReply:
        """Withdraw from a run for good."""
        if not self._hub.board.is_in(peer.name, request.run_id):
            self._refuse_for_now(request.run_id, peer.name)
            raise ProtocolError(f"{peer.name} is not in run {request.run_id[:64]!r}.")
        self._hub.audit.record("left", peer, run=request.run_id)
        self._hub.book.withdraw(request.run_id, peer.name)
        self._hub.board.leave(peer.name, request.run_id)
        return pb.LeaveReply()

    def create_upload(self, request: pb.CreateUploadRequest, peer: Peer) -> pb.UploadStatus:
        """Say from where an upload goes on."""
        binding = _own(request.binding, peer)
        ResultCard.read(request.metadata_json)
        if not self._hub.uploads.is_committed(binding.site, binding.run_id, binding.round):
            most = self._refuse_unless_asked(binding).most_bytes
            if most is not None and request.size > most:
                raise WireError(
                    f"an update of {request.size} bytes; with this run's adapter none has more "
                    f"than {most}. Use the run's bundle, and the same version of fedot on both "
                    "sides."
                )
        state = self._hub.uploads.create(binding, request.size, request.metadata_json)
        return _status(state)

    def query_upload(self, request: pb.UploadRef, peer: Peer) -> pb.UploadStatus:
        """Where an upload stands."""
        return _status(self._hub.uploads.query(request.upload_id, _own(request.binding, peer)))

    def commit_upload(self, request: pb.UploadRef, peer: Peer) -> pb.UploadStatus:
        """Check an upload that is whole, and count it."""
        binding = _own(request.binding, peer)
        if not self._hub.uploads.is_committed(binding.site, binding.run_id, binding.round):
            self._refuse_unless_asked(binding)
        state = self._hub.uploads.commit(request.upload_id, binding)
        # Who did not hear the answer asks again; that is no second update.
        if state.is_new:
            self._hub.audit.record(
                "received",
                peer,
                run=binding.run_id,
                round=binding.round,
                digest=binding.digest,
                num_bytes=state.committed_offset,
            )
            self._hub.telemetry.uploaded(peer.name)
            self._hub.board.arrived(binding.site, binding.run_id, binding.round)
        return _status(state)

    def list_files(self, request: pb.FilesRequest, peer: Peer) -> pb.FilesReply:
        """What is offered under a digest."""
        self.refuse_unless_readable(request.binding, peer)
        files = self._hub.shelf.files(request.binding.digest)
        return pb.FilesReply(
            files=[pb.File(name=f.name, size=f.size, sha256=f.sha256) for f in files]
        )

    def refuse_unless_readable(self, message: pb.Binding, peer: Peer) -> None:
        """A site reads what belongs to the run that it is in; an owner reads everything.

        Raises:
            ProtocolError: it is neither.
            Busy: that cannot be said yet.
        """
        if peer.role == "owner":
            return
        binding = _own(message, peer)
        board = self._hub.board
        is_in = board.is_in(peer.name, binding.run_id)
        if is_in and board.offers(peer.name, binding.run_id, binding.round, binding.digest):
            return
        self._refuse_for_now(binding.run_id, peer.name)
        if not is_in:
            raise ProtocolError(
                f"{peer.name} is not in run {binding.run_id[:64]!r}; {board.now()}. "
                "Ask what comes next."
            )
        raise ProtocolError(
            f"{binding.digest[:12]!r} is not what {peer.name} is to get in round {binding.round}; "
            f"{board.now()}. Ask what comes next."
        )

    def submit_job(self, request: pb.SubmitRequest, peer: Peer) -> pb.Job:
        """Queue a job."""
        with _told_to_the_owner():
            job = self._hub.jobs.submit(request.name, request.config_yaml, peer.name)
        self._hub.audit.record("submitted", peer, job=job.job_id, name=request.name)
        return job

    def list_jobs(self, request: pb.JobRef, peer: Peer) -> pb.JobList:
        """All jobs."""
        return pb.JobList(jobs=self._hub.jobs.jobs())

    def show_job(self, request: pb.JobRef, peer: Peer) -> pb.Job:
        """One job."""
        return self._hub.jobs.show(request.job_id)

    def abort_job(self, request: pb.JobRef, peer: Peer) -> pb.Job:
        """Stop a job."""
        self._hub.audit.record("aborted", peer, job=request.job_id)
        return self._hub.jobs.abort(request.job_id, peer.name)

    def resume_job(self, request: pb.JobRef, peer: Peer) -> pb.Job:
        """Queue a job again that failed or was aborted."""
        self._hub.audit.record("resumed", peer, job=request.job_id)
        return self._hub.jobs.resume(request.job_id)

    def roll_back(self, request: pb.RollBackRequest, peer: Peer) -> pb.Job:
        """Go back to an earlier round."""
        self._hub.audit.record("rolled_back", peer, job=request.job_id, round=request.round)
        with _told_to_the_owner():
            return self._hub.jobs.roll_back(request.job_id, request.round)

    def _refuse_for_now(self, run_id: str, site: str) -> None:
        """A server that was just started again must not tell a site that its round is closed.

        Raises:
            Busy: the run goes on, and has not asked anything yet.
        """
        if self._hub.board.is_expected(run_id, site):
            raise Busy("the server was started again and takes up the run; try later.", 0.0)

    def _refuse_unless_asked(self, binding: Binding) -> Posted:
        board = self._hub.board
        posted = board.asked(binding.site, binding.run_id, binding.round)
        if posted is None:
            self._refuse_for_now(binding.run_id, binding.site)
            raise ProtocolError(
                f"round {binding.round} is not asked of {binding.site}: it is closed, was given up "
                f"or never was; {board.now()}. Ask what comes next; the update does not count."
            )
        return posted


@contextmanager
def _told_to_the_owner() -> Iterator[None]:
    """What the owner asked for and cannot be done is the caller's business here."""
    try:
        yield
    except ConfigError as error:
        raise ProtocolError(str(error)) from error


def _own(message: pb.Binding, peer: Peer) -> Binding:
    """The binding, if it is the caller's own.

    Raises:
        Denied: it names another site.
        WireError: it is none.
    """
    binding = Binding.of(message)
    if binding.site != peer.name:
        raise Denied(
            f"the certificate is {peer.name}'s and the request names another site; a site acts for "
            "itself only."
        )
    return binding


def _status(state: UploadState) -> pb.UploadStatus:
    return pb.UploadStatus(
        upload_id=state.upload_id,
        committed_offset=state.committed_offset,
        is_committed=state.is_committed,
    )


def _next_reply(answer: Answer) -> pb.NextReply:
    if answer.what == "run":
        return pb.NextReply(run_json=answer.text)
    if answer.what == "task":
        return pb.NextReply(task_json=answer.text)
    if answer.what == "over":
        return pb.NextReply(over=pb.Over(run_id=answer.run_id, outcome=answer.text))
    return pb.NextReply(wait=pb.Wait(why=answer.text))
