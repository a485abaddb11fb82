"""The model owner's server: it answers sites at once, and works off a queue of jobs, one at a time.

Design note: calls are answered by threads that import no torch; what computes runs in the thread
that calls `serve`, and is imported when the first job needs it. A server that was killed takes its
job up again in the round that it was in.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedot.cards import RunCard
from fedot.config import config_from_yaml, to_yaml
from fedot.emulator.manifest import MANIFEST, read_manifest
from fedot.engines.remote import RemoteEngine
from fedot.engines.remote_desk import RESULTS
from fedot.errors import FedotError, RunStopped
from fedot.federation.disk_trouble import is_of_the_disk
from fedot.federation.following import Following, told_of_absent
from fedot.federation.jobs import Job, JobQueue
from fedot.federation.results import pack_results, run_id_of
from fedot.messages import ClientInfo, Progress
from fedot.transport.errors import Busy
from fedot.transport.service import Hub
from fedot.transport.upload import UploadStore

if TYPE_CHECKING:
    from fedot.engines.engine import Engine
    from fedot.federation.owner_run import RunStart
    from fedot.federation.work import OnRound

__all__ = ["Server", "Watcher", "drop_uploads"]

logger = logging.getLogger(__name__)

# How often the server looks whether there is a job, a site, or a reason to stop.
_TICK_S = 0.5
# How long it waits before it asks a disk again that was full.
_DISK_PAUSE_S = 30.0

Outcome = Literal["done", "failed", "aborted"]


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
    on_done: Callable[[Path], object]


class Server:
    """Works off the queue of one home.

    Args:
        hub: what calls are answered from.
        queue: the jobs.
        sign: signs bundles with the owner's key.
        watcher: is told what happens.
    """

    def __init__(
        self,
        hub: Hub,
        queue: JobQueue,
        sign: Callable[[bytes], bytes],
        watcher: Watcher,
    ) -> None:
        self._hub = hub
        self._queue = queue
        self._sign = sign
        self._watcher = watcher
        self._follow = Following()
        self._stop = threading.Event()

    def submit_once(self, name: str, config_yaml: str, by: str) -> None:
        """Queue a job unless the same one is still to be done, then it goes on; or is done.

        A server that is started again with the same command must not spend budgets again: for that
        there is `fedot job submit`.

        Raises:
            ConfigError: the config cannot be used.
        """
        resolved = to_yaml(config_from_yaml(config_yaml))
        for job in self._queue.list():
            same = (job.name, job.config_yaml) == (name, resolved)
            if same and job.state in ("queued", "running", "done"):
                if job.state == "done":
                    self._watcher.say(f"job {job.job_id} ({name}) is done; nothing is run again")
                return
        self._queue.submit(name, config_yaml, by)

    def stop(self) -> None:
        """Stop as soon as what is open can be taken up again; from any thread."""
        self._stop.set()
        self._hub.board.wake()

    def work(self, until_done: bool) -> bool:
        """Do every job of the queue, then wait for more.

        Args:
            until_done: end instead of waiting for more.

        Returns:
            Whether every job ended well; of a server that goes on after one that did not, True.
        """
        good = True
        while not self._stop.is_set():
            job = self._queue.next_queued()
            if job is not None:
                good = self._do_or_wait(job) and good
            elif until_done:
                return good
            else:
                self._hub.board.explain("no job is in the queue")
                self._stop.wait(_TICK_S)
        return good or not until_done

    def _do_or_wait(self, job: Job) -> bool:
        """One job; where the disk fails it stays `running`, and `work` takes it up again."""
        try:
            return self._do(job)
        except (OSError, sqlite3.Error, Busy) as error:
            if not is_of_the_disk(error):
                raise
            logger.warning("the disk fails", exc_info=error)
            self._watcher.say(
                f"job {job.job_id} waits, for the server's disk fails: {error}. Make room or put "
                f"it right; the server tries again every {_DISK_PAUSE_S:g} s."
            )
            self._hub.board.explain("the server waits for its disk")
            self._stop.wait(_DISK_PAUSE_S)
            return True

    def _do(self, job: Job) -> bool:
        """One job, from where it is; it stays `running` where it can be taken up again."""
        say, board = self._watcher.say, self._hub.board
        again = self._queue.run_folder(job.job_id).exists()
        say(f"job {job.job_id} ({job.name}) {'goes on' if again else 'starts'}")
        board.explain(f"job {job.job_id} is being prepared")
        outcome: Outcome = "done"
        reason = ""
        try:
            # The server may have been killed between the question and its answer.
            self._stop_if_asked(job, "before it went on")
            self._run(job)
        except RunStopped as stopped:
            if self._stop.is_set():
                say(str(stopped))
                return True
            outcome, reason = "aborted", self._queue.stop_reason(job.job_id) or str(stopped)
        # One job's error, be it our bug, must end neither the server nor the queue behind it: the
        # job would be given again at every start.
        except Exception as error:
            if is_of_the_disk(error):
                raise
            outcome, reason = "failed", _why(error)
        self._queue.finish(job.job_id, outcome, reason)
        say(f"job {job.job_id} is {outcome}" + (f": {reason}" if reason else ""))
        self._let_go(job, outcome)
        self._hub.audit.record("run_ended", job=job.job_id, outcome=outcome)
        return outcome == "done"

    def _stop_if_asked(self, job: Job, when: str) -> None:
        reason = self._reason_to_stop(job)
        if reason is not None:
            raise RunStopped(f"job {job.job_id} was stopped {when}: {reason}. It can be resumed.")

    def _let_go(self, job: Job, outcome: str) -> None:
        """Tell sites that a run is over, and keep nothing of theirs that the journal has not.

        A run that is taken up again asks for what it lacks, and sites send what they have stored.
        """
        run_id = run_id_of(self._queue.run_folder(job.job_id))
        if run_id is not None:
            self._hub.board.close_run(run_id, outcome)
            drop_uploads(self._hub.uploads, run_id, job)

    def _run(self, job: Job) -> None:
        # torch comes in here.
        from fedot.federation.owner_run import run_job

        out = self._queue.run_folder(job.job_id)
        out.parent.mkdir(parents=True, exist_ok=True)
        run_job(
            config_from_yaml(job.config_yaml),
            out,
            lambda start: self._open_engine(job, start),
            names=self._hub.members.sites(),
            resume=out.exists(),
            progress=lambda *step: self._progress(job, *step),
            on_round=self._round_closed,
            roll_back_to=lambda: self._queue.wanted_roll_back(job.job_id),
            roll_back_done=lambda round: self._queue.take_roll_back(job.job_id, round),
            should_stop=lambda: self._reason_to_stop(job),
            sign=self._sign,
            name=job.name,
        )
        self._watcher.on_done(out)
        pack_results(out, out.with_name(RESULTS))

    def _open_engine(self, job: Job, start: RunStart) -> Engine:
        """Let sites in, wait until enough of them are there."""
        hub = self._hub
        folder = start.bundle.folder
        names = [MANIFEST, *read_manifest(folder)["files"]]
        hub.shelf.put(start.bundle_digest, {name: folder / name for name in names})
        hub.book.reopen(start.run_id)
        cards = {name: run_card(start, name).model_dump_json() for name in start.names}
        hub.board.open_run(
            start.run_id, start.bundle_digest, cards, hub.book.withdrawn(start.run_id)
        )
        # Who was there at the beginning may have gone for good: a round knows what to do then.
        if start.last_closed == 0:
            self._wait_for_sites(job, start)
        infos = [ClientInfo(name, hub.book.dataset_of(name) or name) for name in start.names]
        states = self._queue.run_folder(job.job_id).with_name("states")
        return RemoteEngine(
            hub.board,
            hub.uploads,
            hub.shelf,
            states,
            infos,
            start.num_received,
            is_admitted=hub.members.is_admitted,
            look=self._look,
            should_stop=lambda: self._reason_to_stop(job),
        )

    def _wait_for_sites(self, job: Job, start: RunStart) -> None:
        board, shown = self._hub.board, ""
        while self._reason_to_stop(job) is None:
            self._look()
            names = [
                name
                for name in start.names
                if board.is_in(name, start.run_id) and self._hub.members.is_admitted(name)
            ]
            wanted = min(start.config.network.wait_for or len(names), len(names))
            here = set(board.present())
            absent = [name for name in names if name not in here]
            line = f"{len(names) - len(absent)} of {len(names)} sites are here, {wanted} are needed"
            line += told_of_absent(absent, board.presences())
            if line != shown:
                self._watcher.say(line)
                shown = line
            if len(names) - len(absent) >= wanted:
                return
            self._stop.wait(_TICK_S)

    def _look(self) -> None:
        """Say what a person wants to know of the sites, and show it in the metrics."""
        presences = self._hub.board.presences()
        for line in self._follow.news(presences):
            self._watcher.say(line)
        here, late = self._hub.board.present(), [each for each in presences if each.is_late]
        self._hub.telemetry.rounds(self._hub.board.open_round(), len(here), len(late))

    def _progress(self, job: Job, stage: str, done: int, total: int) -> None:
        """Building and measuring take long, and nobody else asks then whether to stop."""
        self._watcher.progress(stage, done, total)
        self._stop_if_asked(job, f"during: {stage}")

    def _reason_to_stop(self, job: Job) -> str | None:
        if self._stop.is_set():
            return "the server is stopping"
        return self._queue.stop_reason(job.job_id)

    def _round_closed(self, metrics: Mapping[str, Any]) -> None:
        self._hub.audit.record("round_closed", round=metrics["round"])
        self._watcher.on_round(metrics)


def _why(error: Exception) -> str:
    """What a person is told of a job that failed; what only developers understand is logged."""
    if isinstance(error, FedotError):
        return str(error)
    logger.error("a job failed", exc_info=error)
    again = "Put it right, then fedot job resume."
    if isinstance(error, OSError):
        what = error.filename or "a file"
        return f"the server cannot read or write {what}: {error.strerror or error}. {again}"
    return (
        f"internal error: {type(error).__name__}; the server's log says where. This is a bug in "
        "fedot, please report it; fedot job resume tries again."
    )


def drop_uploads(uploads: UploadStore, run_id: str, job: Job) -> None:
    """Keep no update of a run that has ended."""
    for round in range(1, config_from_yaml(job.config_yaml).federation.rounds + 1):
        uploads.drop(run_id, round)


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
        max_tokens=config.data.max_tokens,
        rounds=config.federation.rounds,
        planned_rounds=start.planned_rounds.get(site, 0),
        training=config.training,
        privacy=config.privacy,
        payload=config.payload,
        seed=config.seed,
    )
