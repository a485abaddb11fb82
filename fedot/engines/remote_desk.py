"""The owner's side of the calls about jobs. No torch here."""

from __future__ import annotations

import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from fedot.engines.papers import channel_credentials
from fedot.errors import ConfigError, WireError
from fedot.messages import Progress
from fedot.transport import fedot_pb2 as pb
from fedot.transport.binding import Binding, File
from fedot.transport.channel import Channel
from fedot.transport.identity import read_kit

__all__ = ["RESULTS", "RemoteDesk"]

RESULTS = "results.zip"
"""The one file of a finished job's digest on the shelf."""
_OVER = ("done", "failed", "aborted")
_LOOK_S = 1.0
# A person waits for an answer.
_PATIENCE_S = 10.0
# Far above what an archive of an adapter and its reports needs.
_MOST_FILES = 1000


class RemoteDesk:
    """A server's jobs, from elsewhere; a context manager."""

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = channel
        self._name = name

    @classmethod
    def open(cls, server: str, kit: Path) -> RemoteDesk:
        """Call a server with a kit whose key lies beside it.

        Raises:
            ConfigError: kit or key cannot be read.
        """
        name = read_kit(kit).site
        key = kit.parent / f"{name}.key"
        channel = Channel(
            server,
            lambda: channel_credentials(read_kit(kit), kit, key),
            Random(),
            give_up_after_s=_PATIENCE_S,
        )
        return cls(channel, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def submit(self, name: str, config_yaml: str) -> pb.Job:
        """Queue a job."""
        request = pb.SubmitRequest(name=name, config_yaml=config_yaml)
        return self._channel.call("SubmitJob", request, pb.Job)

    def jobs(self) -> list[pb.Job]:
        """All jobs, oldest first."""
        return list(self._channel.call("ListJobs", pb.JobRef(), pb.JobList).jobs)

    def show(self, job_id: str) -> pb.Job:
        """One job, with everything about it."""
        return self._channel.call("ShowJob", pb.JobRef(job_id=job_id), pb.Job)

    def follow(self, job_id: str, sleep: Callable[[float], None] = time.sleep) -> Iterator[pb.Job]:
        """One job again and again, until it has ended."""
        while True:
            job = self.show(job_id)
            yield job
            if job.state in _OVER:
                return
            sleep(_LOOK_S)

    def abort(self, job_id: str) -> pb.Job:
        """Stop a job."""
        return self._channel.call("AbortJob", pb.JobRef(job_id=job_id), pb.Job)

    def resume(self, job_id: str) -> pb.Job:
        """Queue a job again that failed or was aborted."""
        return self._channel.call("ResumeJob", pb.JobRef(job_id=job_id), pb.Job)

    def roll_back(self, job_id: str, round: int) -> pb.Job:
        """Go back to an earlier round."""
        request = pb.RollBackRequest(job_id=job_id, round=round)
        return self._channel.call("RollBack", request, pb.Job)

    def fetch(self, job_id: str, out: Path, progress: Progress) -> None:
        """Download a finished job's results; they are at `out` whole or not at all.

        Raises:
            ConfigError: `out` exists, or the job is not done.
            WireError: the archive has names that lead outside, or too many.
        """
        if out.exists():
            raise ConfigError(f"{out} exists; name another --out.")
        job = self.show(job_id)
        if not job.results_digest:
            raise ConfigError(f"job {job_id} is {job.state}; only one that is done has results.")
        binding = Binding(job.run_id, 0, self._name, job.results_digest)
        file = next((each for each in self._channel.files(binding) if each.name == RESULTS), None)
        if file is None:
            raise WireError(f"the server offers no {RESULTS} for job {job_id}; ask the owner.")
        draft = out.with_name(f".{out.name}.part")
        draft.mkdir(parents=True, exist_ok=True)
        archive = draft / RESULTS
        named = File(RESULTS, file.size, job.results_digest)
        self._channel.download(binding, named, archive, lambda d, n: progress("fetch", d, n))
        _unpack(archive, draft / "results")
        (draft / "results").rename(out)
        shutil.rmtree(draft)


def _unpack(archive: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            _refuse_odd(packed, shutil.disk_usage(archive.parent).free)
            packed.extractall(to)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise WireError("the results are no archive that can be read; ask the owner.") from error


def _refuse_odd(packed: zipfile.ZipFile, free: int) -> None:
    names = packed.namelist()
    odd = [n for n in names if n.startswith("/") or ".." in n.split("/") or "\\" in n]
    if odd or len(names) > _MOST_FILES:
        raise WireError("the results hold names that lead outside, or too many; ask the owner.")
    num_bytes = sum(each.file_size for each in packed.infolist())
    if num_bytes > free:
        raise ConfigError(f"the results need {num_bytes} bytes and there is room for {free}.")
