"""The model owner's server: it answers sites at once, and works off a queue of jobs, one at a time.

Design note: calls are answered by threads that import no torch; what computes runs in the thread
that calls `serve`, and is imported when the first job needs it. A server that was killed takes its
job up again in the round that it was in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from fedot.cards import RunCard
from fedot.config import config_from_dict
from fedot.emulator.manifest import MANIFEST, read_manifest
from fedot.engines.remote import RemoteEngine
from fedot.errors import FedotError, RunStopped
from fedot.federation.jobs import Job, JobQueue
from fedot.federation.results import RESULTS, pack_results
from fedot.messages import ClientInfo, Progress
from fedot.transport.service import Hub

if TYPE_CHECKING:
    from fedot.engines.engine import Engine
    from fedot.federation.owner_run import RunStart
    from fedot.federation.work import OnRound

__all__ = ["Server", "Watcher"]

logger = logging.getLogger(__name__)

# How often the server looks whether there is a job, a site, or a reason to stop.
_TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class Watcher:
    """How a person follows a server.

    Attributes:
        say: one line.
        progress: long steps.
        on_round: each closed round's metrics.
        on_done: given the run's folder when a job is done, before its results are offered.
    """

    say: Callable[[str], None]
    progress: Progress
    on_round: OnRound
    on_done: Callable[[Path], None]


class Server:
    """Works off the queue of one home.

    Args:
        hub: what calls are answered from.
        queue: the jobs.
        home: the server's folder.
        sign: signs bundles with the owner's key.
        watcher: is told what happens.
    """

    def __init__(
        self,
        hub: Hub,
        queue: JobQueue,
        home: Path,
        sign: Callable[[bytes], bytes],
        watcher: Watcher,
    ) -> None:
        self._hub = hub
        self._queue = queue
        self._home = home
        self._sign = sign
        self._watcher = watcher
        self._stop = threading.Event()

    def stop(self) -> None:
        """Stop as soon as what is open can be taken up again; from any thread."""
        self._stop.set()
        self._hub.board.stop("the server is stopping")

    def work(self, until_done: bool) -> bool:
        """Do every job of the queue, then wait for more.

        Args:
            until_done: end instead of waiting for more.

        Returns:
            Whether every job that was done ended well.
        """
        good = True
        while not self._stop.is_set():
            job = self._queue.next()
            if job is not None:
                good = self._do(job) and good
            elif until_done:
                return good
            else:
                self._hub.board.explain("no job is in the queue")
                self._stop.wait(_TICK_S)
        return good

    def _do(self, job: Job) -> bool:
        """One job, from where it is; it stays `running` where it can be taken up again."""
        say, board = self._watcher.say, self._hub.board
        say(f"job {job.job_id} ({job.name}): {'goes on' if self._out(job).exists() else 'starts'}")
        board.explain(f"job {job.job_id} is being prepared")
        try:
            self._run(job)
        except RunStopped as stopped:
            if self._queue.get(job.job_id).state != "aborted":
                say(str(stopped))
                return True
            outcome, reason = "aborted", self._queue.get(job.job_id).reason
        except FedotError as error:
            outcome, reason = "failed", str(error)
            self._queue.finish(job.job_id, "failed", reason)
        else:
            outcome, reason = "done", ""
            self._queue.finish(job.job_id, "done", "")
        self._hub.audit.write("job", job=job.job_id, outcome=outcome)
        say(f"job {job.job_id} is {outcome}" + (f": {reason}" if reason else ""))
        run_id = self._queue.get(job.job_id).run_id
        if run_id:
            board.close_run(run_id, outcome)
        return outcome == "done"

    def _run(self, job: Job) -> None:
        # torch comes in here.
        from fedot.federation.owner_run import run_job

        out = self._out(job)
        out.parent.mkdir(parents=True, exist_ok=True)
        run_job(
            config_from_dict(yaml.safe_load(job.config_yaml)),
            out,
            lambda start: self._open_engine(job, start),
            names=self._hub.members.sites(),
            resume=out.exists(),
            progress=self._watcher.progress,
            on_round=self._watcher.on_round,
            roll_back_to=lambda: self._queue.roll_back_to(job.job_id),
            should_stop=lambda: self._reason_to_stop(job),
            sign=self._sign,
            name=job.name,
        )
        self._watcher.on_done(out)
        pack_results(out, out.with_name(RESULTS))

    def _open_engine(self, job: Job, start: RunStart) -> Engine:
        """Let sites in, wait until enough of them are there."""
        hub = self._hub
        self._queue.began(job.job_id, start.run_id)
        folder = start.bundle.folder
        names = [MANIFEST, *read_manifest(folder)["files"]]
        hub.shelf.put(start.bundle_digest, {name: folder / name for name in names})
        cards = {name: run_card(start, name).model_dump_json() for name in start.names}
        hub.board.open_run(
            start.run_id, start.bundle_digest, cards, hub.book.withdrawn(start.run_id)
        )
        self._wait_for_sites(job, start)
        infos = [ClientInfo(name, hub.book.dataset_of(name) or name) for name in start.names]
        states = self._out(job).with_name("states")
        return RemoteEngine(hub.board, hub.uploads, hub.shelf, states, infos)

    def _wait_for_sites(self, job: Job, start: RunStart) -> None:
        wanted = start.config.network.wait_for or len(start.names)
        shown: Sequence[str] | None = None
        while self._reason_to_stop(job) is None:
            here = sorted(set(self._hub.board.present()) & set(start.names))
            if here != shown:
                missing = sorted(set(start.names) - set(here))
                self._watcher.say(
                    f"{len(here)} of {len(start.names)} sites are here, {wanted} are needed"
                    + (f"; missing: {', '.join(missing)}" if missing else "")
                )
                shown = here
            if len(here) >= wanted:
                return
            self._stop.wait(_TICK_S)

    def _reason_to_stop(self, job: Job) -> str | None:
        if self._stop.is_set():
            return "the server is stopping"
        now = self._queue.get(job.job_id)
        return now.reason or "aborted" if now.state == "aborted" else None

    def _out(self, job: Job) -> Path:
        return self._home / "jobs" / job.job_id / "run"


def run_card(start: RunStart, site: str) -> RunCard:
    """What a site is told of a run."""
    config = start.config
    return RunCard(
        run_id=start.run_id,
        name=start.name,
        bundle_digest=start.bundle_digest,
        bundle_bytes=start.bundle.num_bytes,
        adapter=start.bundle.adapter.kind,
        adapter_parameters=start.adapter_parameters,
        dtype=config.model.dtype,
        text_field=config.data.text_field,
        max_tokens=config.data.max_tokens,
        held_out_ratio=config.data.held_out_ratio,
        rounds=config.federation.rounds,
        planned_rounds=start.planned_rounds.get(site, 0),
        training=config.training,
        privacy=config.privacy,
        payload=config.payload,
        seed=config.seed,
    )
