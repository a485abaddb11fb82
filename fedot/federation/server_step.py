"""The server's optimizer over a run; what it remembers lies in the journal.

A round that was cut off is stepped again from the moments of the round before, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedot.aggregation.server_optimizers import Moments, adam_step
from fedot.compression.codec import TensorSpec
from fedot.config import Config
from fedot.federation.roll_back import origin
from fedot.federation.rounds import State, from_journal, to_journal
from fedot.journal import Journal

__all__ = ["decay", "server_step"]


def decay(config: Config, round: int) -> float:
    """Cosine over the rounds, from 1 in the first one to `final_lr_ratio` in the last."""
    last = config.federation.rounds
    place = (round - 1) / (last - 1) if last > 1 else 0.0
    floor = config.training.final_lr_ratio
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * place))


def server_step(journal: Journal, config: Config, round: int) -> Callable[[State], State]:
    """From a round's change to what is added to the state, in float64."""
    rate = config.federation.server_learning_rate
    if config.federation.server_optimizer == "sgd":
        return lambda change: {name: rate * tensor for name, tensor in change.items()}

    def step(change: State) -> State:
        added, moments = adam_step(change, _before(journal, round), rate * decay(config, round))
        _keep(journal, round, moments)
        return added

    return step


def _before(journal: Journal, round: int) -> Moments:
    held = journal.fact(f"moments/{origin(journal, round - 1)}")
    if held is None:
        return Moments.none()
    expected = {n: TensorSpec(tuple(shape), "float32") for n, shape in held["shapes"].items()}
    first, second = (
        from_journal(journal.payload(held[name]), expected) for name in ("first", "second")
    )
    return Moments(first, second, held["counts"])


def _keep(journal: Journal, round: int, moments: Moments) -> None:
    journal.note(
        f"moments/{round}",
        {
            "first": journal.keep(to_journal(dict(moments.first))),
            "second": journal.keep(to_journal(dict(moments.second))),
            "shapes": {name: list(tensor.shape) for name, tensor in moments.first.items()},
            "counts": dict(moments.counts),
        },
    )
