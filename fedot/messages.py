"""The frozen types that cross rooms and, later, the wire. No torch here.

A payload is bytes made by `fedot.compression.codec`; only its reader knows what is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig

__all__ = [
    "AdapterPart",
    "ClientFailure",
    "ClientInfo",
    "ClientResult",
    "Progress",
    "RoundTask",
    "digest_of",
    "no_progress",
]

AdapterPart = Literal["all", "A", "B"]
"""What of an adapter trains in a round: every tensor, or one half of LoRA."""

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`, with 0 done where a stage begins: its time is counted
from there. How it is shown is `fedot.console`'s business.
"""


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing: for tests and library use."""


def digest_of(payload: bytes) -> str:
    """SHA-256 of a payload as 64 hex digits: its identity in journal, ledger and wire."""
    return sha256(payload).hexdigest()


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """A data owner as the server sees it: a name and the data set it declared, no counts."""

    name: str
    dataset_id: str


@dataclass(frozen=True, slots=True)
class RoundTask:
    """What the server asks of every client in a cohort.

    Attributes:
        run_id: names the run in every ledger and journal.
        round: counted from 1.
        state: payload with the adapter's tensors before this round.
        learning_rate: of this round.
        training: steps and batch sizes.
        privacy: what the update may reveal.
        payload: the chains that both sides use.
        planned_rounds: by client name, for how many rounds of this run it is drawn at most; its
            noise is calibrated so that all of them stay within its target epsilon.
        seed: of stochastic rounding and, where there is no DP, of the order of records; a DP
            client's noise and sampling ignore it.
        trains: what of the adapter trains; the rest stays as it is, and only this travels back.
        state_part: what of the adapter `state` holds; the rest never changes (LoRA's frozen A).
        deadline_s: seconds that the round waits for its whole cohort, or None. It is the server's
            business and does not travel.
        quorum: updates that close the round after the deadline; with fewer it does not close. None
            waits for everybody's answer. It does not travel either.
    """

    run_id: str
    round: int
    state: bytes = field(repr=False)
    learning_rate: float
    training: TrainingConfig
    privacy: PrivacyConfig
    payload: PayloadConfig
    planned_rounds: Mapping[str, int]
    seed: int = 0
    trains: AdapterPart = "all"
    state_part: AdapterPart = "all"
    deadline_s: float | None = None
    quorum: int | None = None

    @property
    def task_id(self) -> str:
        """Unique over runs; the key in a ledger."""
        return f"{self.run_id}/{self.round}"


@dataclass(frozen=True, slots=True)
class ClientResult:
    """One client's update for one round.

    Attributes:
        epsilon: what the client's ledger has spent on this data set so far, None without DP.
        bytes_after: bytes after each operator of the chain (`float32` first).
        received_bytes: bytes of state that the client took in for this round.
    """

    client: str
    round: int
    payload: bytes = field(repr=False)
    digest: str
    epsilon: float | None
    bytes_after: dict[str, int]
    received_bytes: int

    def metadata(self) -> dict[str, Any]:
        """What the journal keeps beside the payload."""
        return {
            "epsilon": self.epsilon,
            "bytes_after": self.bytes_after,
            "received_bytes": self.received_bytes,
        }


@dataclass(frozen=True, slots=True)
class ClientFailure:
    """Why a client has no update in a round; the reason holds no data."""

    client: str
    round: int
    reason: str
