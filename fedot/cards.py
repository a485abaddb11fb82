"""What server and site tell each other in JSON: a run, a task without its state, a result.

Neither trusts the other: unknown keys, values out of bounds and names that could leave a folder are
refused as a `WireError` before anything is done with them. No torch here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.config_section import Section
from fedot.errors import WireError
from fedot.messages import AdapterPart, ClientResult, RoundTask

__all__ = ["Digest", "ResultCard", "RunCard", "RunId", "TaskCard"]

# It names a folder at the site.
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Sums of these stay exact, also where a reader has only floats.
_Count = Annotated[int, Field(ge=0, lt=2**53)]
# Looks like an operator of a chain; which ones there must be is the round's to say.
_OperatorName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
# Far above any ledger's: a card with more would break what shows it.
_MOST_EPSILON = 1e6
# Far above any card: payloads' settings are numbers and short texts.
_MOST_CHARACTERS = 2**16


class _Card(Section):
    """JSON of one kind."""

    @classmethod
    def read(cls, text: str) -> Self:
        """Check what came from the other side.

        Raises:
            WireError: it is too long, no JSON, or has a key or value that is not allowed.
        """
        if len(text) > _MOST_CHARACTERS:
            raise WireError(
                f"the other side's {cls.__name__} has {len(text)} characters; the limit is "
                f"{_MOST_CHARACTERS}."
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise WireError(
                f"the other side's {cls.__name__} cannot be used: {where}: {first['msg']}. Both "
                "sides may have different versions of fedot."
            ) from error


class RunCard(_Card):
    """One run, as a site is asked to join it: enough to say what it would train, send and spend.

    Attributes:
        bundle_digest: SHA-256 of the bundle's manifest, which has the digests of all its files.
        planned_rounds: for how many rounds this site is drawn at most.
        seed: the config's: the order of records without DP.
    """

    run_id: RunId
    name: str = Field(max_length=200)
    bundle_digest: Digest
    bundle_bytes: _Count
    adapter: str = Field(max_length=20)
    adapter_parameters: _Count
    dtype: Literal["float32", "bfloat16"]
    max_tokens: int = Field(ge=8, lt=2**53)
    rounds: int = Field(ge=1, lt=2**53)
    planned_rounds: _Count
    training: TrainingConfig
    privacy: PrivacyConfig
    payload: PayloadConfig
    seed: int = Field(ge=0, lt=2**32)


class TaskCard(_Card):
    """A `RoundTask` for one site, its state named by digest and size."""

    run_id: RunId
    round: int = Field(ge=1, lt=2**53)
    state_digest: Digest
    state_bytes: _Count
    learning_rate: float = Field(gt=0)
    training: TrainingConfig
    privacy: PrivacyConfig
    payload: PayloadConfig
    planned_rounds: int = Field(ge=1, lt=2**53)
    seed: int = Field(ge=0, lt=2**32)
    trains: AdapterPart
    state_part: AdapterPart

    @classmethod
    def of(cls, task: RoundTask, site: str, state_digest: str) -> TaskCard:
        """What one site gets of a task."""
        return cls(
            run_id=task.run_id,
            round=task.round,
            state_digest=state_digest,
            state_bytes=len(task.state),
            learning_rate=task.learning_rate,
            training=task.training,
            privacy=task.privacy,
            payload=task.payload,
            planned_rounds=task.planned_rounds[site],
            seed=task.seed,
            trains=task.trains,
            state_part=task.state_part,
        )

    @property
    def task_id(self) -> str:
        """As `RoundTask.task_id`."""
        return f"{self.run_id}/{self.round}"

    def task(self, site: str, state: bytes) -> RoundTask:
        """The task at the site, with the state that it downloaded."""
        return RoundTask(
            run_id=self.run_id,
            round=self.round,
            state=state,
            learning_rate=self.learning_rate,
            training=self.training,
            privacy=self.privacy,
            payload=self.payload,
            planned_rounds={site: self.planned_rounds},
            seed=self.seed,
            trains=self.trains,
            state_part=self.state_part,
        )


class ResultCard(_Card):
    """What a site says of its update, beside the bytes; the server cannot check it.

    So it is bounded here: whatever adds these numbers up, writes or draws them can do so.
    """

    epsilon: float | None = Field(ge=0, le=_MOST_EPSILON)
    bytes_after: dict[_OperatorName, _Count] = Field(min_length=1, max_length=16)
    received_bytes: _Count

    @classmethod
    def of(cls, result: ClientResult) -> ResultCard:
        """Of one result."""
        return cls(**result.metadata())

    def result(self, site: str, round: int, digest: str, payload: bytes) -> ClientResult:
        """The whole result, at the server."""
        return ClientResult(
            client=site,
            round=round,
            payload=payload,
            digest=digest,
            epsilon=self.epsilon,
            bytes_after=self.bytes_after,
            received_bytes=self.received_bytes,
        )
