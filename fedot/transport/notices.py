"""What stands on the server's board, and what is said there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Answer", "Event", "Posted", "Presence"]


@dataclass(frozen=True, slots=True)
class Posted:
    """A round's task as it stands on the board.

    Attributes:
        state_digest: of the state that the cohort downloads.
        cards: by site, the JSON of its `TaskCard`; the keys are the cohort.
        deadline_s: after so many seconds, who has not answered is late; None: never.
        most_bytes: no update of the run is larger; None: as the limits of all runs say.
    """

    run_id: str
    round: int
    state_digest: str
    cards: Mapping[str, str]
    deadline_s: float | None = None
    most_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """One site as the server sees it.

    Attributes:
        since: when the phase began, by the board's clock.
        seen: when it last called.
        is_late: asked, and the deadline has passed.
        is_gone: it has not called for long.
    """

    site: str
    phase: str
    since: float
    seen: float
    round: int = 0
    reason: str = ""
    is_late: bool = False
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the engine waits for."""

    kind: Literal["arrived", "failed", "left", "wake"]
    site: str
    run_id: str
    round: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a site that asks "what next" is told; `text` is JSON, an outcome, or why it waits."""

    what: Literal["wait", "run", "task", "over"]
    text: str
    run_id: str = ""
