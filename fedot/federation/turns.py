"""Which part of an adapter has its turn in a round.

Design note: the mean of clients' B times the mean of their A is not the mean of their products.
While one half is the same for everybody, it is: the product is linear in the other half, and so is
the noise in it. Hence a frozen A (FFA-LoRA, arXiv:2403.12313) or turns (RoLoRA, arXiv:2409.02346).
Every round costs its budget, whichever half it trains.
"""

from __future__ import annotations

from fedot.config import AdapterConfig
from fedot.messages import AdapterPart

__all__ = ["state_part", "trained_part"]


def trained_part(adapter: AdapterConfig, round: int) -> AdapterPart:
    """What trains in a round, counted from 1.

    B has the first turn: it starts at zero, and while it is, A has no gradient.
    """
    if adapter.freeze == "A":
        return "B"
    if adapter.alternate:
        return "B" if round % 2 else "A"
    return "all"


def state_part(adapter: AdapterConfig) -> AdapterPart:
    """What of the state travels down: all that may have changed since the bundle."""
    return "B" if adapter.freeze == "A" else "all"
