"""A site's loop: say hello, get the bundle, and do every round that the server asks for.

Design note: torch is imported when the first task comes, not before: a site that only has to send
again what it has stored, or to wait, is up at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fedot.cards import ResultCard, RunCard, TaskCard
from fedot.engines.data_owner import DataOwner
from fedot.engines.fetch import fetch_bundle, shown
from fedot.engines.remote import STATE_FILE
from fedot.errors import (
    BudgetError,
    ConfigError,
    FedotError,
    ProtocolError,
    TransportError,
    WireError,
)
from fedot.journal import write_durably
from fedot.messages import ClientResult, Progress
from fedot.transport import fedot_pb2 as pb
from fedot.transport.binding import Binding
from fedot.transport.channel import Channel
from fedot.transport.identity import Kit
from fedot.transport.service import PROTOCOL
from fedot.transport.shelf import File

if TYPE_CHECKING:
    from fedot.client.round import Site
    from fedot.models.adapters import Adapter
    from fedot.privacy.noise import NoiseSource

__all__ = ["join"]

logger = logging.getLogger(__name__)

# The server answers "wait" after so long; it is no timeout, only how often a waiting site is seen.
_WAIT_S = 20.0
# How often a busy site says that it is alive.
_REPORT_S = 5.0


_FAILURES: Mapping[type[FedotError], str] = {
    BudgetError: "the site's privacy budget or policy does not allow the round",
    ConfigError: "the site's policy or files do not allow the round",
    WireError: "the site refused what it was sent",
    ProtocolError: "the site could not do the round, or training diverged",
    FedotError: "the site could not do the round",
}


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a run needs in memory at the site."""

    card: RunCard
    site: Site
    adapter: Adapter


def join(
    channel: Channel,
    kit: Kit,
    owner: DataOwner,
    *,
    progress: Progress,
    say: Callable[[str], None],
    make_noise: Callable[[], NoiseSource] | None = None,
) -> str:
    """Take part in one run, until it is over.

    Args:
        channel: to the server.
        kit: who the site is, and whose bundles it trusts.
        owner: the site's records and terms.
        progress: is told about transfers.
        say: is told what happens, a line each.
        make_noise: as in `run_round`.

    Returns:
        The run's outcome.

    Raises:
        ConfigError, BudgetError: the policy does not allow the run; nothing was trained.
        ProtocolError: the server does not let the site in.
    """
    hello = pb.HelloRequest(
        protocol=PROTOCOL,
        version=version("fedot-offsite-tuning"),
        dataset_id=owner.policy.dataset_id,
    )
    channel.call("Hello", hello, pb.HelloReply)
    begun = _begun(owner)
    if begun.exists():
        # Who was killed at the end of a run has to hear of it too.
        reply = _next(channel, begun.read_text(encoding="utf-8"), 0)
        if reply.WhichOneof("what") == "over":
            begun.unlink()
            return str(reply.over.outcome)
    say(f"{owner.name} is in; waiting for a run")
    ready: _Ready | None = None
    while True:
        reply = _next(channel, ready.card.run_id if ready else "", _WAIT_S)
        what = reply.WhichOneof("what")
        if what == "over":
            begun.unlink(missing_ok=True)
            return str(reply.over.outcome)
        if what == "run_json":
            card = RunCard.read(reply.run_json)
            say(f"run {card.name}: {card.planned_rounds} rounds planned for this site")
            ready = _get_ready(channel, kit, owner, card, progress)
            say("ready; waiting for rounds")
        elif what == "task_json" and ready is not None:
            task = TaskCard.read(reply.task_json)
            _refuse_other_run(ready.card, task)
            _do_round(channel, owner, ready, task, progress, say, make_noise)


def _begun(owner: DataOwner) -> Path:
    """Holds the id of the run that a site is in, until it has heard of its end."""
    return owner.home / "run"


def _next(channel: Channel, run_id: str, wait_s: float) -> pb.NextReply:
    request = pb.NextRequest(run_id=run_id, wait_s=wait_s)
    return channel.call("Next", request, pb.NextReply, wait_s)


def _refuse_other_run(card: RunCard, task: TaskCard) -> None:
    if task.run_id != card.run_id or task.planned_rounds != card.planned_rounds:
        raise WireError(
            f"the server asked for {task.task_id}, which is not the run that was agreed on "
            f"({card.run_id}, {card.planned_rounds} rounds). Nothing was trained; ask the owner."
        )


def _get_ready(
    channel: Channel, kit: Kit, owner: DataOwner, card: RunCard, progress: Progress
) -> _Ready:
    """Check the run against the policy, get the bundle, load it and the records."""
    from fedot.engines.local_site import load_adapter_of, load_site, weigh

    weigh(owner, card)
    write_durably(_begun(owner), card.run_id.encode())
    with _reporting(channel, card.run_id, 0, "download"):
        bundle = fetch_bundle(channel, kit, owner.home / "bundles", card, owner.name, progress)
    return _Ready(card, load_site(owner, card, bundle), load_adapter_of(owner, card, bundle))


def _do_round(
    channel: Channel,
    owner: DataOwner,
    ready: _Ready,
    task: TaskCard,
    progress: Progress,
    say: Callable[[str], None],
    make_noise: Callable[[], NoiseSource] | None,
) -> None:
    """One round; what goes wrong in it is told to the server, and the site stays in the run."""
    try:
        with _reporting(channel, task.run_id, task.round, "download"):
            state = _state(channel, owner, task, progress)
        progress(f"round {task.round}", 0, 1)
        with _reporting(channel, task.run_id, task.round, "train"):
            result = _train(ready, task, state, make_noise)
        with _reporting(channel, task.run_id, task.round, "upload"):
            _send(channel, task, result, progress)
    except TransportError:
        raise
    except FedotError as error:
        logger.warning("round %d: %s", task.round, error)
        say(f"round {task.round} failed: {error}")
        _report(channel, task.run_id, task.round, "failed", _told(error))
    else:
        progress(f"round {task.round}", 1, 1)
        spent = "" if result.epsilon is None else f", epsilon spent {result.epsilon:.2f}"
        say(f"round {task.round} done: {len(result.payload)} bytes sent{spent}")


def _state(channel: Channel, owner: DataOwner, task: TaskCard, progress: Progress) -> bytes:
    binding = Binding(task.run_id, task.round, owner.name, task.state_digest)
    path = owner.home / "state"
    path.unlink(missing_ok=True)
    file = File(STATE_FILE, task.state_bytes, task.state_digest)
    channel.download(binding, file, path, shown(progress, f"state of round {task.round}"))
    try:
        return path.read_bytes()
    finally:
        path.unlink()


def _train(
    ready: _Ready,
    task: TaskCard,
    state: bytes,
    make_noise: Callable[[], NoiseSource] | None,
) -> ClientResult:
    from fedot.client.round import run_round
    from fedot.privacy.noise import NoiseSource

    autocast = ready.card.dtype != "float32"
    asked = task.task(ready.site.info.name, state)
    return run_round(ready.site, ready.adapter, asked, autocast, make_noise or NoiseSource.from_os)


def _send(channel: Channel, task: TaskCard, result: ClientResult, progress: Progress) -> None:
    binding = Binding(task.run_id, task.round, result.client, result.digest)
    card = ResultCard.of(result).model_dump_json()
    channel.upload(binding, result.payload, card, shown(progress, f"send round {task.round}"))


def _told(error: FedotError) -> str:
    """What the server hears of an error: never its text, which may tell of the records."""
    return next(text for kind, text in _FAILURES.items() if isinstance(error, kind))


def _report(channel: Channel, run_id: str, round: int, phase: str, reason: str = "") -> bool:
    request = pb.ReportRequest(run_id=run_id, round=round, phase=phase, reason=reason[:500])
    return bool(channel.call("Report", request, pb.ReportReply).cancelled)


@contextmanager
def _reporting(channel: Channel, run_id: str, round: int, phase: str) -> Iterator[None]:
    """Tell the server every few seconds what the site is doing; that it cannot be told is no harm.

    Only which phase, never how far: the time of a DP step tells the size of its batch.
    """
    over = threading.Event()

    def tell() -> None:
        while True:
            try:
                _report(channel, run_id, round, phase)
            except FedotError as error:
                logger.info("report: %s", error)
            if over.wait(_REPORT_S):
                return

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
