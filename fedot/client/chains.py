"""Which operators a run's payloads go through, in each direction."""

from __future__ import annotations

from fedot.compression.chain import Stage, chain_of, step_of
from fedot.compression.codec import Chain
from fedot.config import PayloadConfig

__all__ = ["feeds_back", "operators_of", "state_chain", "update_chain"]


def update_chain(payload: PayloadConfig) -> Chain:
    """What an update goes through on its way up: a difference, so lossy steps are allowed."""
    return chain_of(payload.chain)


def operators_of(payload: PayloadConfig) -> str:
    """An update's chain as a policy names it: operators without their parameters."""
    return "+".join(step.name for step in update_chain(payload))


def state_chain(payload: PayloadConfig) -> Chain:
    """What the adapter's state goes through on its way down: 16 bit or more."""
    return chain_of(payload.state)


def feeds_back(payload: PayloadConfig) -> bool:
    """Whether a client adds what its last update lost to the next one."""
    if payload.error_feedback is not None:
        return payload.error_feedback
    return step_of(update_chain(payload), Stage.SPARSIFY) is not None
