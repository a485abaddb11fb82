"""`fedot join`: a site with its identity, its policy and a way to the server."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedot.cards import RunCard
from fedot.engines.data_owner import DataOwner
from fedot.engines.join import join
from fedot.engines.papers import Papers
from fedot.engines.waiting import Waiting
from fedot.errors import ConfigError, ProtocolError
from fedot.messages import Progress
from fedot.privacy.policy import load_policy
from fedot.transport import fedot_pb2 as pb
from fedot.transport.authorize import Asked, Authorizer, load_hooks
from fedot.transport.channel import Channel
from fedot.transport.identity import read_kit
from fedot.transport.members import Peer

if TYPE_CHECKING:
    from fedot.engines.local_site import Offer
    from fedot.privacy.noise import NoiseSource

__all__ = ["OpenSite", "open_site"]

# A site asks for a new certificate in good time.
_WARN_DAYS = 14
_LOOK_S = 20.0


class OpenSite:
    """A site that can call its server; a context manager."""

    def __init__(
        self,
        channel: Channel,
        papers: Papers,
        owner: DataOwner,
        authorizer: Authorizer,
        waiting: Waiting,
    ) -> None:
        self.channel = channel
        self._papers = papers
        self._owner = owner
        self._authorizer = authorizer
        self._waiting = waiting

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.channel.close()

    def take_part(
        self,
        progress: Progress,
        say: Callable[[str], None],
        *,
        stay: bool = False,
        make_noise: Callable[[], NoiseSource] | None = None,
    ) -> str:
        """Take part in the open run or the next one, until it is over.

        Args:
            progress: is told about transfers.
            say: is told what happens.
            stay: then wait for the run after it, and so on.
            make_noise: as in `run_round`; for tests.

        Returns:
            What to tell a person at the end.

        Raises:
            ConfigError, BudgetError: the policy does not allow the run.
            ProtocolError: the server does not let the site in, or the run did not end well.
        """
        self._waiting.say = say
        with _alone(self._owner.home):
            self._warn(say)

            def before_asking() -> None:
                # The server has proved by now that it has this owner's keys.
                self._papers.pin(self._owner.home, say)
                self._reconnect_with_new_papers()

            while True:
                outcome = join(
                    self.channel,
                    self._papers.first,
                    self._owner,
                    progress=progress,
                    say=say,
                    consent=self._consent,
                    before_asking=before_asking,
                    make_noise=make_noise,
                )
                if not stay:
                    break
                say(f"the run is {outcome}; waiting for the next")
        if outcome not in ("done", "withdrawn"):
            raise ProtocolError(f"the run ended as {outcome}; ask the model owner why.")
        return f"the run is {outcome}; {self._what_left()}"

    def _what_left(self) -> str:
        """For the person at the end of a run."""
        left = f"no record of {self._owner.records.name} was sent, only updates trained on them"
        if not self._owner.ledger_file.exists():
            return f"{left}, without DP"
        return f"{left}; what they cost: fedot budget show {self._owner.policy_file}"

    def leave(self) -> str:
        """Withdraw from the run that is open.

        Raises:
            ProtocolError: there is none that this site is in.
        """
        card = self._open_run(wait_s=0)
        if card is None:
            raise ProtocolError("no run is open that this site is in; there is nothing to leave.")
        self.channel.call("Leave", pb.LeaveRequest(run_id=card.run_id), pb.LeaveReply)
        return f"withdrew from run {card.name}; it will not be asked of this site again"

    def look(self, say: Callable[[str], None]) -> tuple[RunCard, Offer]:
        """What the open run, or the next one, would train, send and spend; nothing leaves.

        Raises:
            ConfigError, BudgetError: the policy does not allow it; says what would fit.
            ProtocolError: the site's own rules do not.
        """
        from fedot.engines.local_site import weigh

        self._waiting.say = say
        card = self._open_run(wait_s=0)
        if card is None:
            say("no run is open yet; waiting for one")
        while card is None:
            card = self._open_run(wait_s=_LOOK_S)
        offer = weigh(self._owner, card)
        self._consent(card, offer)
        return card, offer

    def _consent(self, card: RunCard, offer: Offer) -> None:
        """Ask the rules that are installed at this site."""
        kit = self._papers.first
        epsilon = "" if offer.run_epsilon is None else f"{offer.run_epsilon:.6g}"
        details = {
            "run_id": card.run_id,
            "run": card.name,
            "bundle": card.bundle_digest,
            "dataset_id": self._owner.policy.dataset_id,
            "adapter": card.adapter,
            "chain": str(card.payload.chain),
            "rounds": str(card.planned_rounds),
            "privacy_unit": card.privacy.unit,
            "epsilon": epsilon,
        }
        peer = Peer(kit.site, kit.role, kit.fingerprint)
        self._authorizer.check(Asked(peer, "take_part", details))

    def _reconnect_with_new_papers(self) -> None:
        """A certificate that was renewed is used before the old one ends."""
        if self._papers.changed():
            self.channel.reconnect()

    def _open_run(self, wait_s: float) -> RunCard | None:
        request = pb.NextRequest(wait_s=wait_s, peek=True)
        reply = self.channel.call("Next", request, pb.NextReply, wait_s)
        return RunCard.read(reply.run_json) if reply.WhichOneof("what") == "run_json" else None

    def _warn(self, say: Callable[[str], None]) -> None:
        days = self._papers.first.days_left(datetime.now(UTC))
        if days < _WARN_DAYS:
            say(
                f"this site's certificate ends in {days:.0f} days; renew it: fedot pki request "
                f"--site {self._owner.name}"
            )


def open_site(
    server: str,
    kit: Path | None,
    key: Path | None,
    policy: Path,
    records: Path,
    home: Path,
    *,
    owner_line: str | None = None,
    text_field: str = "text",
    device: str = "auto",
) -> OpenSite:
    """Read what a site has, and open a channel; nothing is sent yet.

    Args:
        server: HOST:PORT.
        kit: what the owner sent back; None takes the one `*.kit.json` in this folder.
        key: the private key; None takes `SITE.key` beside the kit or in `pki/`.
        policy: the data owner's terms.
        records: file with the private records.
        home: stored updates and bundles.
        owner_line: the owner's, as somebody read it out; None trusts the first kit.
        text_field: field of a record that holds its text.
        device: auto, cpu or cuda.

    Raises:
        ConfigError: a file is missing or cannot be used, or the kit is another owner's.
    """
    kit = kit or _only_kit()
    mine = read_kit(kit)
    if owner_line is not None and owner_line.strip().lower() != mine.owner:
        raise ConfigError(
            f"{kit} is of the owner {mine.owner}, not of the one that --owner names. Somebody else "
            "may have made it; nothing was sent. Ask the owner for the kit again."
        )
    load_policy(policy)
    if not records.is_file():
        raise ConfigError(f"there are no records at {records}; name a file with --data.")
    where = key or _key_of(mine.site, kit.parent)
    owner = DataOwner(mine.site, home, records, policy, text_field, device)
    papers, waiting = Papers(kit, where, home), Waiting(server)
    papers.credentials()
    authorizer = Authorizer(load_hooks())
    channel = Channel(server, papers.credentials, Random(), on_retry=waiting)
    return OpenSite(channel, papers, owner, authorizer, waiting)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".join").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another fedot join is at work in {home}; stop it, or name another --home."
            ) from error
        yield


def _only_kit() -> Path:
    kits = sorted(Path().glob("*.kit.json"))
    if len(kits) != 1:
        raise ConfigError(
            f"there are {len(kits)} files *.kit.json here; name the one that the owner sent with "
            "--kit."
        )
    return kits[0]


def _key_of(site: str, beside: Path) -> Path:
    for folder in (beside, Path("pki")):
        if (folder / f"{site}.key").is_file():
            return folder / f"{site}.key"
    raise ConfigError(
        f"{site}.key is neither beside the kit nor in pki/; name it with --key. It was made by "
        "fedot pki request, at this site."
    )
