"""What a site keeps on disk of a round: the update until it is sent, and what its chain lost.

The update's file is written last and commits the rest. A kill before that leaves nothing that
counts, so the round starts again from the residual that was there; a kill after it leaves the
update together with the residual that belongs to it. A resent update is read, never encoded again,
so no residual is applied twice.

Design note: under DP, a residual counts only once its update has been charged. It is a function of
the noised updates alone, so sending it later is post-processing of what the ledger holds already.
One of a training that was thrown away would be a second release under one reservation; it is never
committed, and is written over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedot.compression.codec import Encoded, Step, TensorSpec, decode, encode, plan
from fedot.errors import ProtocolError, WireError
from fedot.journal import make_folder_durably, sync_folder, write_durably
from fedot.messages import RoundTask, digest_of

__all__ = ["Outbox", "Stored"]

Residual = dict[str, Tensor]

# Exact, and not compressed: the low bits of what was rounded away are noise.
_RESIDUAL_CHAIN = plan(Step("float32"))


@dataclass(frozen=True, slots=True)
class Stored:
    """One round's update, ready to be sent.

    Attributes:
        payload: the bytes that are charged and sent.
        bytes_after: as in `Encoded`.
    """

    payload: bytes
    bytes_after: dict[str, int]

    @property
    def digest(self) -> str:
        """What the ledger is charged with."""
        return digest_of(self.payload)


class Outbox:
    """One site's stored updates; `folder` is made with the first."""

    def __init__(self, folder: Path):
        self._folder = folder

    def stored(self, task: RoundTask) -> Stored | None:
        """The round's update, or None while none is committed."""
        path = self._path(task.task_id)
        if not path.exists():
            return None
        # Whoever stored it may have been killed before the folder was synced.
        sync_folder(self._folder)
        return Stored(path.read_bytes(), _about(path)["bytes_after"])

    def store(self, task: RoundTask, encoded: Encoded, residual: Residual | None) -> Stored:
        """Keep an update and, with it, what its chain lost; whole or not at all."""
        path = self._path(task.task_id)
        make_folder_durably(self._folder)
        about = {
            "key": task.task_id,
            "run": task.run_id,
            "round": task.round,
            "bytes_after": encoded.bytes_after,
        }
        write_durably(path.with_suffix(".json"), json.dumps(about).encode())
        if residual is not None:
            kept = encode(residual, _RESIDUAL_CHAIN).payload
            write_durably(path.with_suffix(".residual"), kept)
        write_durably(path, encoded.payload)
        return Stored(encoded.payload, encoded.bytes_after)

    def residual(
        self,
        task: RoundTask,
        expected: Mapping[str, TensorSpec],
        counts: Callable[[str, str], bool],
    ) -> Residual | None:
        """What the client's latest round of this run before `task` lost; None if there is none.

        Args:
            task: the round that will use it.
            expected: the update's tensors.
            counts: told the key and digest of a stored update, says whether it may be built on.

        Raises:
            ProtocolError: the file is missing or damaged.
        """
        before = [
            (about["round"], path)
            for path, about in self._of_run(task.run_id)
            if about["round"] < task.round and counts(about["key"], digest_of(path.read_bytes()))
        ]
        if not before:
            return None
        path = max(before)[1].with_suffix(".residual")
        try:
            return decode(path.read_bytes(), expected, allowed=[_RESIDUAL_CHAIN])
        except (OSError, WireError) as error:
            raise ProtocolError(
                f"{path} must hold what the last update lost, but cannot be used: {error} Restore "
                "it, or start another run."
            ) from error

    def drop_older(self, task: RoundTask) -> None:
        """Forget what came before a round that is stored and, under DP, charged."""
        keep = {
            path.stem for path, about in self._of_run(task.run_id) if about["round"] >= task.round
        }
        for path in self._folder.iterdir():
            if path.stem not in keep:
                path.unlink()

    def _path(self, task_id: str) -> Path:
        return self._folder / f"{task_id.replace('/', '-')}.update"

    def _of_run(self, run_id: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in self._folder.glob("*.update"):
            # Without its metadata it is one that `drop_older` was killed at.
            about = _about(path) if path.with_suffix(".json").exists() else {"run": None}
            if about["run"] == run_id:
                yield path, about


def _about(path: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return about
