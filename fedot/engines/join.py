"""A site's loop: say hello, get the bundle, and do every round that the server asks for.

Design note: torch is imported when the first task comes, not before: a site that only has to send
again what it has stored, or to wait, is up at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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
from fedot.transport.authorize import HookRefusal
from fedot.transport.binding import Binding, File
from fedot.transport.channel import Channel
from fedot.transport.identity import Kit
from fedot.transport.service import PROTOCOL

if TYPE_CHECKING:
    from fedot.client.round import Site
    from fedot.engines.local_site import Offer
    from fedot.models.adapters import Adapter
    from fedot.privacy.noise import NoiseSource

__all__ = ["Consent", "join"]

Consent = Callable[[RunCard, "Offer"], None]
"""Raises if the site is not to take part in a run that its policy allows."""

logger = logging.getLogger(__name__)

# The server answers "wait" after so long; it is no timeout, only how often a waiting site is seen.
_WAIT_S = 20.0
# How often a busy site says that it is alive.
_REPORT_S = 5.0
# How often the end of an earlier process's run is asked for, until there is a run.
_LOOK_S = 5.0
_PAUSE_S = 1.0
# A state's chain keeps 4 bytes a value, and what does not train need not travel.
_STATE_BYTES_PER_VALUE, _STATE_ROOM = 16, 2**20
_LONGEST_WHY = 200
# What a round has in common with its run.
_AGREED = ("run_id", "planned_rounds", "training", "privacy", "payload", "seed")

_FAILURES: Mapping[type[FedotError], str] = {
    BudgetError: "the site's privacy budget or policy does not allow it",
    ConfigError: "the site's policy or files do not allow it",
    WireError: "the site refused what it was sent",
    HookRefusal: "the site's own rules do not allow it",
    ProtocolError: "the site could not do it, or training diverged",
    FedotError: "the site could not do it",
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
    consent: Consent = lambda card, offer: None,
    before_asking: Callable[[], None] = lambda: None,
    make_noise: Callable[[], NoiseSource] | None = None,
) -> str:
    """Take part in one run, until it is over.

    Args:
        channel: to the server.
        kit: who the site is, and whose bundles it trusts.
        owner: the site's records and terms.
        progress: is told about transfers, in bytes.
        consent: asked once for every run, before anything of it is downloaded; raises to refuse.
        before_asking: called before each question to the server.
        say: is told what happens, a line each.
        make_noise: as in `run_round`.

    Returns:
        The run's outcome.

    Raises:
        ConfigError, BudgetError: the policy does not allow the run; nothing was trained.
        ProtocolError: the server does not let the site in.
    """
    begun, outcome = _last_run(owner)
    if outcome:
        # Killed when it had heard; the server may have let go of everybody since.
        return _heard(channel, owner, pb.Over(run_id=begun, outcome=outcome))
    hello = pb.HelloRequest(
        protocol=PROTOCOL,
        version=version("fedot-offsite-tuning"),
        dataset_id=owner.policy.dataset_id,
    )
    channel.call("Hello", hello, pb.HelloReply)
    say(f"{owner.name} is in; waiting for a run")
    ready: _Ready | None = None
    why, wait_s = "", 0.0
    while True:
        before_asking()
        began = time.monotonic()
        if ready is None:
            reply = _first(channel, begun, wait_s)
        else:
            reply = _next(channel, ready.card.run_id, wait_s)
        # The first answer comes at once, so that a person hears why there is nothing to do.
        wait_s = _WAIT_S
        what = reply.WhichOneof("what")
        if what == "over":
            return _heard(channel, owner, reply.over)
        if what == "run_json":
            # What the last run needed is let go before the next one is loaded.
            ready = None
            card = RunCard.read(reply.run_json)
            say(f"run {card.name}: {card.planned_rounds} rounds planned for this site")
            with _refusals_told(channel, card.run_id, 0):
                ready = _get_ready(channel, kit, owner, card, consent, progress)
            say("ready; waiting for rounds")
        elif what == "task_json" and ready is not None:
            task = TaskCard.read(reply.task_json)
            with _refusals_told(channel, task.run_id, task.round):
                _refuse_other_run(ready.card, task)
            _do_round(channel, owner, ready, task, progress, say, make_noise)
        else:
            if reply.wait.why not in ("", why) and ready is None:
                why = reply.wait.why
                say(f"waiting: {why[:_LONGEST_WHY]}")
            # Asked to wait without having waited: another process of this site, or a server that
            # is stopping.
            if time.monotonic() - began < _PAUSE_S:
                time.sleep(_PAUSE_S)


def _heard(channel: Channel, owner: DataOwner, over: pb.Over) -> str:
    """A run has ended: the server, which may be waiting to end too, is told that it is known.

    Noted first: once the server is told, there may be nobody left to ask again.
    """
    outcome = str(over.outcome)[:_LONGEST_WHY]
    write_durably(_begun(owner), f"{over.run_id}\n{outcome}".encode())
    with suppress(FedotError):
        _report(channel, over.run_id, 0, "over")
    _begun(owner).unlink(missing_ok=True)
    return outcome


def _begun(owner: DataOwner) -> Path:
    """Holds the id of the run that a site is in, and how it ended as soon as that is known."""
    return owner.home / "run"


def _last_run(owner: DataOwner) -> tuple[str, str]:
    """Id and outcome of the run that the last process of this site was in, empty for none."""
    path = _begun(owner)
    if not path.exists():
        return "", ""
    run_id, _, outcome = path.read_text(encoding="utf-8").partition("\n")
    return run_id, outcome


def _first(channel: Channel, begun: str, wait_s: float) -> pb.NextReply:
    """Ask for a run; who was killed in one has to hear of its end, even if it never opens again."""
    if begun:
        reply = _next(channel, begun, 0)
        if reply.WhichOneof("what") == "over":
            return reply
        wait_s = min(wait_s, _LOOK_S)
    return _next(channel, "", wait_s)


def _next(channel: Channel, run_id: str, wait_s: float) -> pb.NextReply:
    request = pb.NextRequest(run_id=run_id, wait_s=wait_s)
    return channel.call("Next", request, pb.NextReply, wait_s)


def _refuse_other_run(card: RunCard, task: TaskCard) -> None:
    """A round must be one of the run that the data owner's policy and rules were asked about."""
    agreed = all(getattr(card, name) == getattr(task, name) for name in _AGREED)
    if not agreed or task.round > card.rounds:
        raise WireError(
            f"the server asked for {task.task_id}, which is not of the run that was agreed on "
            f"({card.run_id}, {card.planned_rounds} of {card.rounds} rounds, with its training, "
            "privacy and payload). Nothing was trained; ask the owner."
        )


@contextmanager
def _refusals_told(channel: Channel, run_id: str, round: int) -> Iterator[None]:
    """Let the server know that it need not wait for this site."""
    try:
        yield
    except TransportError:
        raise
    except FedotError as error:
        with suppress(FedotError):
            _report(channel, run_id, round, "failed", _told(error))
        raise


def _get_ready(
    channel: Channel,
    kit: Kit,
    owner: DataOwner,
    card: RunCard,
    consent: Consent,
    progress: Progress,
) -> _Ready:
    """Check the run against policy and rules, get the bundle, load it and the records."""
    from fedot.engines.local_site import load_adapter_of, load_site, weigh

    consent(card, weigh(owner, card))
    write_durably(_begun(owner), card.run_id.encode())
    with _reporting(channel, card.run_id, 0, "download"):
        bundle = fetch_bundle(channel, kit, owner.home / "bundles", card, owner.name, progress)
    # First: it checks every file against its digest.
    adapter = load_adapter_of(owner, card, bundle)
    return _Ready(card, load_site(owner, card, bundle), adapter)


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
            state = _state(channel, owner, ready, task, progress)
        with _reporting(channel, task.run_id, task.round, "train"):
            result = _train(owner, ready, task, state, make_noise)
        with _reporting(channel, task.run_id, task.round, "upload"):
            _send(channel, task, result, progress)
    except TransportError:
        raise
    except FedotError as error:
        logger.warning("round %d: %s", task.round, error)
        say(f"round {task.round} failed: {error}")
        failed = _request(task.run_id, task.round, "failed", _told(error))
        channel.call("Report", failed, pb.ReportReply)
    else:
        spent = "" if result.epsilon is None else f", epsilon spent {result.epsilon:.2f}"
        say(f"round {task.round} done: {len(result.payload)} bytes sent{spent}")


def _state(
    channel: Channel, owner: DataOwner, ready: _Ready, task: TaskCard, progress: Progress
) -> bytes:
    largest = _STATE_BYTES_PER_VALUE * ready.adapter.num_parameters + _STATE_ROOM
    if task.state_bytes > largest:
        raise WireError(
            f"the server's state of round {task.round} has {task.state_bytes} bytes; of this "
            f"adapter it has at most {largest}. Nothing was downloaded; ask the owner."
        )
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
    owner: DataOwner,
    ready: _Ready,
    task: TaskCard,
    state: bytes,
    make_noise: Callable[[], NoiseSource] | None,
) -> ClientResult:
    from fedot.client.round import run_round
    from fedot.privacy.noise import NoiseSource

    policy, site = owner.policy, ready.site
    if policy.dataset_id != site.info.dataset_id:
        raise ConfigError(
            f"the policy names data set {policy.dataset_id} now and this run began on "
            f"{site.info.dataset_id}; nothing was trained. Give it its name back, or start fedot "
            "join again."
        )
    autocast = ready.card.dtype != "float32"
    asked = task.task(ready.site.info.name, state)
    return run_round(
        replace(site, policy=policy),
        ready.adapter,
        asked,
        autocast,
        make_noise or NoiseSource.from_os,
    )


def _send(channel: Channel, task: TaskCard, result: ClientResult, progress: Progress) -> None:
    binding = Binding(task.run_id, task.round, result.client, result.digest)
    card = ResultCard.of(result).model_dump_json()
    channel.upload(binding, result.payload, card, shown(progress, f"send round {task.round}"))


def _told(error: FedotError) -> str:
    """What the server hears of an error: never its text, which may tell of the records."""
    return next(text for kind, text in _FAILURES.items() if isinstance(error, kind))


def _request(run_id: str, round: int, phase: str, reason: str = "") -> pb.ReportRequest:
    return pb.ReportRequest(run_id=run_id, round=round, phase=phase, reason=reason)


def _report(channel: Channel, run_id: str, round: int, phase: str, reason: str = "") -> None:
    """Once: a server that is away for a while needs no old news."""
    channel.tell("Report", _request(run_id, round, phase, reason), pb.ReportReply)


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
