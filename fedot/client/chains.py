"""Which operators a run's payloads go through, in each direction."""

from __future__ import annotations

from fedot.compression.codec import Chain, Step, plan
from fedot.config import PayloadConfig

__all__ = ["operators_of", "state_chain", "update_chain"]


def update_chain(payload: PayloadConfig) -> Chain:
    """What an update goes through on its way up: a difference, so lossy steps are allowed."""
    params: dict[str, int | float] = {}
    if payload.update == "int8":
        params = {"block": payload.block, "min_step": payload.min_step}
    return plan(Step(payload.update, params), *_deflate(payload.deflate_level))


def operators_of(payload: PayloadConfig) -> str:
    """An update's chain as a policy names it: operators without their parameters."""
    return "+".join(step.name for step in update_chain(payload))


def state_chain(payload: PayloadConfig) -> Chain:
    """What the adapter's state goes through on its way down: 16 bit or more."""
    return plan(Step(payload.state, {}), *_deflate(payload.deflate_level))


def _deflate(level: int) -> tuple[Step, ...]:
    return (Step("deflate", {"level": level}),) if level else ()
