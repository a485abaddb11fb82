"""What the server asks of a round's cohort."""

from __future__ import annotations

from collections.abc import Sequence

from fedot.client.chains import state_chain
from fedot.compression.codec import encode
from fedot.config import Config
from fedot.federation.cohort import most_rounds
from fedot.federation.rounds import State, part_of
from fedot.federation.server_step import decay
from fedot.federation.turns import state_part, trained_part
from fedot.messages import RoundTask

__all__ = ["learning_rate", "round_task"]


def round_task(
    config: Config,
    run_id: str,
    round: int,
    state: State,
    names: Sequence[str],
    num_drawn: int,
) -> RoundTask:
    """A round's task.

    Args:
        config: the run, its chain settled.
        run_id: names the run in every ledger.
        round: counted from 1.
        state: the whole adapter before it.
        names: all clients, drawn or not.
        num_drawn: size of the round's cohort; a Poisson cohort may be smaller than the quorum.
    """
    travels, quorum = state_part(config.adapter), config.federation.quorum
    return RoundTask(
        run_id=run_id,
        round=round,
        state=encode(part_of(state, travels), state_chain(config.payload)).payload,
        learning_rate=learning_rate(config, round),
        training=config.training,
        privacy=config.privacy,
        payload=config.payload,
        planned_rounds=most_rounds(config, names),
        seed=config.seed,
        trains=trained_part(config.adapter, round),
        state_part=travels,
        deadline_s=config.federation.deadline_s,
        quorum=None if quorum is None else min(quorum, num_drawn),
    )


def learning_rate(config: Config, round: int) -> float:
    """A round's local rate. Adam at the server undoes every scale, so there the server's decays."""
    adam = config.federation.server_optimizer == "adam"
    return config.training.learning_rate * (1.0 if adam else decay(config, round))
