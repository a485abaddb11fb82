"""One round, from state to state."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedot.aggregation.means import trimmed_mean
from fedot.client.bounds import LARGEST_COUNTED, are_within
from fedot.client.chains import update_chain
from fedot.compression.codec import Step, TensorSpec, decode, encode, plan, spec_of
from fedot.compression.quantize import MAX_SENT
from fedot.config import Config
from fedot.engines.engine import Engine
from fedot.errors import ProtocolError, WireError
from fedot.journal import Journal
from fedot.messages import AdapterPart, ClientFailure, ClientResult, Progress, RoundTask
from fedot.models.adapters import part_names

__all__ = [
    "Aggregate",
    "Answers",
    "RoundOutcome",
    "State",
    "answers_of",
    "collect",
    "fewest_updates",
    "from_journal",
    "next_state",
    "part_of",
    "plain_aggregate",
    "settle",
    "to_journal",
]

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

# The journal keeps the state exactly, whatever travels down.
_JOURNAL_CHAIN = plan(Step("float32", {}), Step("deflate", {"level": 1}))


Aggregate = Callable[[State, Sequence[State]], tuple[State, dict[str, Any]]]
"""From what trains (before the round) and all updates of it to one change, float64, and to what
else is told in the round's line."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Who answered a round, once and for all: what comes later does not count.

    Attributes:
        clients: whose updates are in.
        failed: by name, why the others have none.
    """

    clients: tuple[str, ...]
    failed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What a round brought.

    Attributes:
        state: the adapter's tensors after it, float32.
        metrics: the round's line in `metrics.jsonl`, losses apart.
    """

    state: State
    metrics: dict[str, Any]


def collect(
    engine: Engine,
    journal: Journal,
    task: RoundTask,
    cohort: Sequence[str],
    expected: Mapping[str, TensorSpec],
    progress: Progress,
) -> dict[str, str]:
    """Have the cohort work; every good update goes into the journal as it arrives.

    Updates that the journal already holds (from before a restart) are not asked for again.

    Returns:
        Why members of the cohort have no update, by name.
    """
    have = {update.client for update in journal.received(task.round)}
    missing = [name for name in cohort if name not in have]
    failed: dict[str, str] = {}
    stage = f"round {task.round}"
    if missing:
        progress(stage, len(cohort) - len(missing), len(cohort))
    for result in engine.run(task, missing):
        if isinstance(result, ClientFailure):
            failed[result.client] = result.reason
        else:
            reason = _accept(journal, result, expected, task)
            if reason:
                failed[result.client] = reason
        done = len(cohort) - len(missing) + missing.index(result.client) + 1
        progress(stage, done, len(cohort))
    have = {update.client for update in journal.received(task.round)}
    silent = "did not answer before the round closed"
    return {name: failed.get(name, silent) for name in cohort if name not in have}


def fewest_updates(config: Config, quorum: int | None) -> int:
    """How many updates a round needs; noise at the server can do without any.

    Args:
        config: rule and privacy.
        quorum: of the round's task.
    """
    if config.privacy.protects_clients:
        return quorum or 0
    return max(quorum or 0, 2 * config.federation.num_trimmed + 1)


def settle(
    journal: Journal, task: RoundTask, cohort: Sequence[str], failed: Mapping[str, str], fewest: int
) -> Answers:
    """Write down whose updates a round is made of, before anything is computed from them.

    A restart aggregates the same updates, whoever could answer by then.

    Raises:
        ProtocolError: fewer than `fewest` updates are in; nothing is settled, and a resumed run
            asks again.
    """
    clients = [u.client for u in journal.received(task.round) if u.client in cohort]
    if len(clients) < fewest:
        reason = next(iter(failed.values()), "nobody was drawn")
        got = f"{len(clients)} updates" if clients else "no update"
        raise ProtocolError(
            f"round {task.round} got {got}; it needs {fewest}. Put right what is wrong and resume "
            f"the run. First reason: {reason}"
        )
    journal.note(_answers_key(task), {"clients": clients, "failed": dict(failed)})
    return Answers(tuple(clients), failed)


def answers_of(journal: Journal, task: RoundTask) -> Answers | None:
    """What `settle` wrote, or None before that."""
    held = journal.fact(_answers_key(task))
    return None if held is None else Answers(tuple(held["clients"]), held["failed"])


def _answers_key(task: RoundTask) -> str:
    return f"answers/{task.round}"


def next_state(
    journal: Journal,
    task: RoundTask,
    before: State,
    cohort: Sequence[str],
    answers: Answers,
    aggregate: Aggregate,
    step: Callable[[State], State],
) -> RoundOutcome:
    """Aggregate the stored updates and step; the same payloads make the same bits.

    Args:
        journal: holds the updates.
        task: the round's.
        before: the adapter's state.
        cohort: who was asked.
        answers: whose updates count.
        aggregate: makes one change of the updates of what trains; see `Aggregate`.
        step: the server optimizer's, from that change to what is added to the state.

    Raises:
        ProtocolError: too few updates for the rule.
    """
    received = [u for u in journal.received(task.round) if u.client in answers.clients]
    part = part_of(before, task.trains)
    chain, expected = update_chain(task.payload), spec_of(part)
    payloads = [journal.payload(update.digest) for update in received]
    updates = [decode(payload, expected, allowed=[chain]) for payload in payloads]
    change, told = aggregate(part, updates)
    moved = {n: (before[n].double() + added).float() for n, added in step(change).items()}
    state = {**before, **moved}
    bytes_after: Counter[str] = Counter()
    for update in received:
        bytes_after.update(update.metadata["bytes_after"])
    norm = torch.stack([c.square().sum() for c in change.values()]).sum().sqrt()
    metrics = {
        "round": task.round,
        "cohort": list(cohort),
        "failed": dict(answers.failed),
        "sent_bytes": sum(map(len, payloads)),
        "received_bytes": len(task.state) * len(cohort),
        "float32_bytes": bytes_after["float32"],
        "bytes_after": dict(bytes_after),
        "epsilon": {
            u.client: u.metadata["epsilon"] for u in received if u.metadata["epsilon"] is not None
        },
        "update_norm": float(norm),
        "learning_rate": task.learning_rate,
        **told,
    }
    return RoundOutcome(state, metrics)


def plain_aggregate(num_trimmed: int) -> Aggregate:
    """Mean or trimmed mean, without noise.

    It raises:
        ProtocolError: too few updates for the rule.
    """
    return lambda part, updates: (trimmed_mean(updates, num_trimmed), {})


def part_of(state: State, part: AdapterPart) -> State:
    """The tensors of a state that belong to a part of the adapter."""
    names = part_names(state, part)
    return {name: tensor for name, tensor in state.items() if name in names}


def to_journal(state: State) -> bytes:
    """The adapter's state, or what goes with it, as the journal keeps it: exact.

    Raises:
        ProtocolError: a value is not finite, or larger than a payload may hold.
    """
    if not are_within(state.values(), MAX_SENT):
        raise ProtocolError(
            f"what the server computed is not finite, or has a value above {MAX_SENT:g}, and "
            "cannot be kept: training has diverged. Go back to an earlier round, or start another "
            "run with a lower federation.server_learning_rate."
        )
    return encode(state, _JOURNAL_CHAIN).payload


def from_journal(payload: bytes, expected: Mapping[str, TensorSpec]) -> State:
    """Read what `to_journal` wrote."""
    return decode(payload, expected, allowed=[_JOURNAL_CHAIN])


def _accept(
    journal: Journal, result: ClientResult, expected: Mapping[str, TensorSpec], task: RoundTask
) -> str | None:
    """Keep a good update; otherwise the reason why it is none."""
    try:
        update = decode(result.payload, expected, allowed=[update_chain(task.payload)])
        _refuse_large(update)
        _refuse_odd(result, task)
    except WireError as error:
        logger.warning("refused %s in round %d: %s", result.client, task.round, error)
        return str(error)
    journal.accept(task.round, result.client, result.payload, result.metadata())
    return None


def _refuse_large(update: State) -> None:
    if not are_within(update.values(), LARGEST_COUNTED):
        raise WireError(
            f"the update has a value above {LARGEST_COUNTED:g}; it is not counted. Such a training "
            "has diverged: the site must leave it out, and training.learning_rate be lower."
        )


def _refuse_odd(result: ClientResult, task: RoundTask) -> None:
    """What it says beside the bytes must be about this task."""
    names = {"float32", *(step.name for step in update_chain(task.payload)), "payload"}
    if set(result.bytes_after) != names:
        raise WireError(
            "the update's bytes_after is not of the run's chain; it is not counted. Both sides may "
            "have different versions of fedot."
        )
    if (result.epsilon is None) == task.privacy.protects_records:
        has, must = ("no", "one") if result.epsilon is None else ("an", "none")
        raise WireError(
            f"the update comes with {has} epsilon, and in a run with privacy.unit="
            f"{task.privacy.unit} it must have {must}; it is not counted. Both sides may have "
            "different versions of fedot."
        )
