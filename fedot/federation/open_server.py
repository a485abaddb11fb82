"""`fedot serve`: opens everything that a server has, and closes it again."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from pydantic import ValidationError

from fedot.config_errors import explain, where_in_yaml
from fedot.errors import ConfigError
from fedot.federation.expiry import daily, ending_soon
from fedot.federation.job_desk import Desk
from fedot.federation.jobs import JobQueue
from fedot.federation.results import run_id_of, sites_of
from fedot.federation.serve import Server, Watcher, drop_uploads
from fedot.transport.audit_log import AuditLog
from fedot.transport.authorize import Authorizer, load_hooks
from fedot.transport.board import Board
from fedot.transport.identity import Signer, server_credentials
from fedot.transport.limits import Limits
from fedot.transport.members import MEMBERS_FILE, Members
from fedot.transport.metrics import Telemetry
from fedot.transport.server import listening
from fedot.transport.service import Hub
from fedot.transport.shelf import Shelf
from fedot.transport.site_book import SiteBook
from fedot.transport.upload import UploadStore

__all__ = ["ServerSettings", "open_server"]

logger = logging.getLogger(__name__)

# How long a server that ends waits for sites to hear of it.
_FAREWELL_S = 30.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a person gives to `fedot serve`.

    Attributes:
        home: jobs, uploads and the audit log.
        pki: the owner's folder.
        listen: HOST:PORT for sites; port 0 takes a free one.
        metrics: HOST:PORT of /metrics and /healthz.
        limits: a YAML file, or None for the defaults.
    """

    home: Path
    pki: Path
    listen: str
    metrics: str
    limits: Path | None = None


@contextmanager
def open_server(settings: ServerSettings, watcher: Watcher) -> Iterator[Server]:
    """A server that answers sites; one process at a time in a home.

    Raises:
        ConfigError: another server is at work there, the owner's folder is not one, or an address
            cannot be listened on.
    """
    if not (settings.pki / MEMBERS_FILE).is_file():
        raise ConfigError(
            f"{settings.pki} is no owner's folder; make one with fedot pki init, or name it with "
            "--pki."
        )
    limits = _limits(settings.limits)
    home = settings.home
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_alone(home))
        queue = stack.enter_context(JobQueue(home / "jobs.sqlite"))
        uploads = stack.enter_context(UploadStore(home / "uploads", limits))
        book = stack.enter_context(closing(SiteBook(home / "sites.sqlite")))
        audit = stack.enter_context(AuditLog(home / "audit.jsonl"))
        members = Members(settings.pki / MEMBERS_FILE)
        board, shelf = Board(uploads.is_committed), Shelf()
        for job in queue.list():
            run = queue.run_folder(job.job_id)
            run_id = run_id_of(run)
            if run_id is not None and job.state in ("done", "failed", "aborted"):
                untold = {*sites_of(run)} - {*book.heard(run_id), *book.withdrawn(run_id)}
                if untold:
                    board.expect(run_id, sorted(untold))
                board.close_run(run_id, job.state)
                # The last server may have been killed before it did.
                drop_uploads(uploads, run_id, job)
            elif run_id is not None:
                board.expect(run_id, sites_of(run))
        host, port = _address(settings.metrics)
        try:
            telemetry = Telemetry(members, lambda: _health(board, queue), host, port)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.metrics} for metrics: {error.strerror}; is it taken, "
                "or not this machine's? Name another --metrics."
            ) from error
        stack.enter_context(telemetry)
        desk = Desk(queue, board, shelf)
        hub = Hub(
            board=board,
            uploads=uploads,
            shelf=shelf,
            book=book,
            members=members,
            authorizer=Authorizer(load_hooks()),
            audit=audit,
            telemetry=telemetry,
            jobs=desk,
            limits=limits,
        )
        signer = Signer(settings.pki)
        credentials = server_credentials(settings.pki)
        where = stack.enter_context(listening(settings.listen, credentials, hub))
        audit.record("started", listen=where)
        watcher.say(f"listening on {where}; metrics at http://{host}:{telemetry.port}/metrics")
        stack.enter_context(daily(lambda: _warn(settings.pki, members, watcher)))
        yield Server(hub, queue, signer.sign, watcher)
        board.wait_until_told(_FAREWELL_S)
        audit.record("stopped")


def _warn(pki: Path, members: Members, watcher: Watcher) -> None:
    for line in ending_soon(pki, members, datetime.now(UTC)):
        logger.warning("%s", line)
        watcher.say(line)


def _health(board: Board, queue: JobQueue) -> tuple[bool, Mapping[str, str | int]]:
    running = [job.job_id for job in queue.list() if job.state == "running"]
    return True, {"status": "ok", "sites": len(board.present()), "running": ", ".join(running)}


def _limits(path: Path | None) -> Limits:
    if path is None:
        return Limits()
    try:
        return Limits.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise ConfigError(f"cannot read limits {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"limits {path} are not valid YAML: {where_in_yaml(error)}.") from error
    except ValidationError as error:
        raise ConfigError(explain(error, Limits, f"limits {path}")) from error


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    with (home / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another server is at work in {home}; stop it, or name another --home."
            ) from error
        yield


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"the address {text!r} must read HOST:PORT, such as 127.0.0.1:9464.")
    return host, int(port)
