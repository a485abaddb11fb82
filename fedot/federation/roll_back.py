"""Going back to an earlier round's state, without a second release.

Design note: a round's number is its key in every ledger, so a number is never used twice. Going
back to round N while M is the last closed one closes round M + 1 with the state of round N, without
a cohort and without training. It is one of the run's planned rounds, so no budget is exceeded. What
the server remembers of earlier rounds (moments, clipping norms) is looked up where the state came
from, so it goes back too; nothing is copied, and closing the round is one transaction.
"""

from __future__ import annotations

import logging
from typing import Any

from fedot.journal import Journal

__all__ = ["line_of_roll_back", "origin", "target"]

logger = logging.getLogger(__name__)

_KEY = "rolled_back_to"


def origin(journal: Journal, round: int) -> int:
    """The round whose work made the state after `round`: itself, unless that went back."""
    went_back = {line["round"]: line[_KEY] for line in journal.metrics() if _KEY in line}
    while round in went_back:
        round = went_back[round]
    return round


def target(journal: Journal, asked: int | None) -> int | None:
    """The round to go back to, or None where there is nothing to do.

    Asking for the state that the run already has is nothing to do. So a kill between going back
    and telling so costs nothing: the same request, shown again, does no more.
    """
    if asked is None:
        return None
    last = journal.last_closed()
    if not 0 <= asked <= last:
        logger.warning("cannot go back to round %d; the last closed one is %d", asked, last)
        return None
    return None if origin(journal, asked) == origin(journal, last) else asked


def line_of_roll_back(round: int, to: int) -> dict[str, Any]:
    """The round's line in `metrics.jsonl`, losses and seconds apart."""
    return {
        "round": round,
        _KEY: to,
        "cohort": [],
        "failed": {},
        "sent_bytes": 0,
        "received_bytes": 0,
        "float32_bytes": 0,
        "bytes_after": {},
        "epsilon": {},
    }
