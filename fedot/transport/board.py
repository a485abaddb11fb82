"""What the server asks of its sites now, and what they are doing: handlers read, the engine writes.

In memory only. What must outlive the process (uploads, data set ids, withdrawals, jobs) lies in
SQLite; after a restart the engine posts the same task again and sites come back by themselves.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fedot.transport.notices import Answer, Event, Posted, Presence

__all__ = ["Board"]

# Who has not called for so long has gone: a waiting site calls every `wait_s`, a busy one reports.
_GONE_AFTER_S = 60.0
_ABSENT = "absent"
_LEFT = "withdrew from the run"
# Ended runs that a site may still ask about.
_MOST_OUTCOMES = 1000


class Board:
    """One server's board; every method may be called from any thread.

    Args:
        is_here: whether a site's update of a round is committed, so that it is not asked again.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        is_here: Callable[[str, str, int], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_here = is_here
        self._clock = clock
        self._changed = threading.Condition()
        self._run_id = ""
        self._run_cards: Mapping[str, str] = {}
        self._bundle_digest = ""
        self._posted: Posted | None = None
        self._posted_at = 0.0
        self._failed: set[str] = set()
        self._left: set[str] = set()
        self._presence: dict[str, Presence] = {}
        self._events: deque[Event] = deque()
        self._outcomes: dict[str, str] = {}
        self._returning: set[str] = set()
        self._unheard: set[str] = set()
        self._turns: Counter[tuple[str, bool]] = Counter()
        self._why = "no run is open"
        self._expected: dict[str, Sequence[str]] = {}
        self._is_shut = False

    def expect(self, run_id: str, sites: Sequence[str]) -> None:
        """A run goes on that an earlier process began: nothing of it is refused until it asks.

        Args:
            run_id: the run's.
            sites: who is in it; the run may end without being opened again.
        """
        with self._changed:
            self._expected[run_id] = sites
            # They may not have noticed yet that there is a server again.
            self._returning |= set(sites)

    def is_expected(self, run_id: str, site: str) -> bool:
        """Whether it cannot be said yet what a run will ask; the site that asked counts as here."""
        with self._changed:
            if run_id not in self._expected:
                return False
            self._seen(site)
            return True

    def open_run(
        self, run_id: str, bundle_digest: str, cards: Mapping[str, str], left: Sequence[str] = ()
    ) -> None:
        """Let sites into a run.

        Args:
            run_id: the run's.
            bundle_digest: of the bundle that they download.
            cards: by site, the JSON of its `RunCard`.
            left: who has withdrawn from it before.
        """
        with self._changed:
            self._run_id, self._run_cards = run_id, dict(cards)
            self._bundle_digest = bundle_digest
            self._left, self._posted = set(left), None
            # Who refused an earlier run, or this one before it was queued again, may take it.
            self._presence = {s: p for s, p in self._presence.items() if not _refused_the_run(p)}
            # A job that had failed and was queued again is the same run.
            self._outcomes.pop(run_id, None)
            self._events.clear()
            self._changed.notify_all()

    def close_run(self, run_id: str, outcome: str) -> None:
        """Tell everybody that a run has ended, now and whenever they ask.

        One that an earlier process ended and not everybody has heard of is expected first.
        """
        with self._changed:
            self._outcomes[run_id] = outcome
            expected = self._expected.pop(run_id, None)
            while len(self._outcomes) > _MOST_OUTCOMES:
                del self._outcomes[next(iter(self._outcomes))]
            if self._run_id == run_id:
                expected = list(self._run_cards)
                self._run_id, self._run_cards, self._posted = "", {}, None
            if expected is not None:
                self._unheard = set(expected)
            self._changed.notify_all()

    def wait_until_told(self, timeout_s: float) -> None:
        """Give every site of the last run that is here the time to hear that it has ended."""
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._here() | self._returning) & self._unheard, timeout_s
            )

    def is_over(self, run_id: str) -> bool:
        """Whether a run has ended."""
        with self._changed:
            return run_id in self._outcomes

    def explain(self, why: str) -> None:
        """What a site is told that has nothing to do."""
        with self._changed:
            self._why = why

    def post(self, task: Posted) -> None:
        """Ask a round's task of its cohort."""
        with self._changed:
            self._posted, self._failed = task, set()
            self._posted_at = self._clock()
            self._expected.pop(task.run_id, None)
            self._events.clear()
            self._changed.notify_all()

    def retract(self) -> None:
        """Ask nothing until the next `post`; whoever still works on it is told to stop."""
        with self._changed:
            self._posted = None
            self._changed.notify_all()

    def next_for(
        self,
        site: str,
        run_id: str,
        wait_s: float,
        peek: bool = False,
    ) -> Answer:
        """What a site shall do, as soon as there is something, or "wait" after `wait_s` seconds.

        Args:
            site: who asks.
            run_id: the run that it is in, or nothing.
            wait_s: see above.
            peek: it only looks, and does not count as present.

        A site that asks again while it waits is answered in the new call only: each waiting call
        holds a thread, and no site may take those of the others.
        """
        ends, asking = self._clock() + wait_s, (site, peek)
        with self._changed:
            self._turns[asking] += 1
            turn = self._turns[asking]
            self._changed.notify_all()
            while True:
                if not peek:
                    self._seen(site)
                answer = self._answer(site, run_id)
                left = ends - self._clock()
                is_last = turn == self._turns[asking]
                if answer.what != "wait" or left <= 0 or self._is_shut or not is_last:
                    return answer
                self._changed.wait(left)

    def report(self, site: str, run_id: str, round: int, phase: str, reason: str = "") -> bool:
        """Note what a site is doing.

        Returns:
            Whether it works on something that nobody waits for any more.
        """
        with self._changed:
            if phase == "over":
                # Only what the site itself says counts: the call of a process that was killed is
                # answered like any other, and nobody hears it.
                self._unheard.discard(site)
                self._changed.notify_all()
                return False
            known = self._presence.get(site)
            now = self._clock()
            same = known is not None and (known.phase, known.round) == (phase, round)
            since = known.since if known is not None and same else now
            self._presence[site] = Presence(site, phase, since, now, round, reason)
            if not self._is_asked(site, run_id, round):
                return round > 0
            if phase == "failed":
                self._failed.add(site)
                self._say(Event("failed", site, run_id, round, reason))
            return False

    def is_open(self, site: str, run_id: str, round: int) -> bool:
        """Whether a round's task is asked of a site now."""
        return self.asked(site, run_id, round) is not None

    def asked(self, site: str, run_id: str, round: int) -> Posted | None:
        """A round's task, if it is asked of a site now."""
        with self._changed:
            return self._posted if self._is_asked(site, run_id, round) else None

    def run_card(self, site: str) -> str:
        """What a site is told of the open run, as JSON; nothing where it is not in it."""
        with self._changed:
            return self._run_cards.get(site, "")

    def is_in(self, site: str, run_id: str) -> bool:
        """Whether a site takes part in the open run."""
        with self._changed:
            return run_id == self._run_id and site in self._run_cards and site not in self._left

    def offers(self, site: str, run_id: str, round: int, digest: str) -> bool:
        """Whether a site may have it: the run's bundle (round 0), or its open round's state."""
        with self._changed:
            if run_id != self._run_id or not digest:
                return False
            if round == 0:
                return digest == self._bundle_digest
            posted = self._posted
            return (
                posted is not None
                and (round, digest) == (posted.round, posted.state_digest)
                and site in posted.cards
            )

    def open_round(self) -> int:
        """The round that is asked now, 0 for none."""
        with self._changed:
            return self._posted.round if self._posted else 0

    def now(self) -> str:
        """Where the open run stands, for a refusal."""
        with self._changed:
            if not self._run_id:
                return self._why
            where = f"round {self._posted.round} is open" if self._posted else "no round is open"
            return f"{where} in {self._run_id}"

    def leave(self, site: str, run_id: str) -> None:
        """Take a site out of the open run for good."""
        with self._changed:
            self._left.add(site)
            round = self._posted.round if self._posted else 0
            self._say(Event("left", site, run_id, round, _LEFT))
            self._changed.notify_all()

    def arrived(self, site: str, run_id: str, round: int) -> None:
        """A site's update is committed."""
        with self._changed:
            self._say(Event("arrived", site, run_id, round))

    def wake(self) -> None:
        """Have the engine look again."""
        with self._changed:
            self._say(Event("wake", "", self._run_id, 0))

    def next_event(self, timeout_s: float) -> Event | None:
        """What happened next, or None after `timeout_s` seconds without anything."""
        with self._changed:
            self._changed.wait_for(lambda: self._events, timeout_s)
            return self._events.popleft() if self._events else None

    def shut(self) -> None:
        """Let everybody who waits go."""
        with self._changed:
            self._is_shut = True
            self._changed.notify_all()

    def present(self) -> Sequence[str]:
        """Sites that have called lately and did not refuse the run, by name."""
        with self._changed:
            return sorted(self._here())

    def presences(self) -> Sequence[Presence]:
        """Every site that has called or is asked; times are ages in seconds instead of moments."""
        with self._changed:
            now, late = self._clock(), self._late()
            unseen = {site: Presence(site, _ABSENT, now, now) for site in self._run_cards}
            return [
                replace(
                    p,
                    since=now - p.since,
                    seen=now - p.seen,
                    is_late=site in late,
                    is_gone=p.phase == _ABSENT or now - p.seen >= _GONE_AFTER_S,
                )
                for site, p in sorted((unseen | self._presence).items())
            ]

    def _here(self) -> set[str]:
        now = self._clock()
        return {
            p.site
            for p in self._presence.values()
            if now - p.seen < _GONE_AFTER_S and not _refused_the_run(p)
        }

    def _late(self) -> set[str]:
        posted = self._posted
        if posted is None or posted.deadline_s is None:
            return set()
        if self._clock() - self._posted_at < posted.deadline_s:
            return set()
        return {s for s in posted.cards if self._is_asked(s, posted.run_id, posted.round)}

    def _answer(self, site: str, run_id: str) -> Answer:
        if run_id in self._outcomes:
            return Answer("over", self._outcomes[run_id], run_id)
        if not self._run_id:
            return Answer("wait", self._why)
        if site in self._left:
            # Only who still thinks that it is in is told so: the others wait for the next run.
            if run_id == self._run_id:
                return Answer("over", "withdrawn", run_id)
            return Answer("wait", "you have withdrawn from the run that is open")
        if site not in self._run_cards:
            return Answer("wait", "the run that is open is without you")
        if run_id != self._run_id:
            return Answer("run", self._run_cards[site])
        posted = self._posted
        if posted is not None and self._is_asked(site, run_id, posted.round):
            return Answer("task", posted.cards[site])
        return Answer("wait", "nothing to do for you yet")

    def _is_asked(self, site: str, run_id: str, round: int) -> bool:
        posted = self._posted
        return (
            posted is not None
            and (posted.run_id, posted.round) == (run_id, round)
            and site in posted.cards
            and site not in self._failed | self._left
            and not self._is_here(site, run_id, round)
        )

    def _seen(self, site: str) -> None:
        now = self._clock()
        self._returning.discard(site)
        known = self._presence.get(site)
        if known is None or known.phase not in ("idle", "failed") or _refused_the_run(known):
            known = Presence(site, "idle", now, now)
        self._presence[site] = replace(known, seen=now)
        if known.seen == now:
            self._changed.notify_all()

    def _say(self, event: Event) -> None:
        self._events.append(event)
        self._changed.notify_all()


def _refused_the_run(presence: Presence) -> bool:
    """It failed before any round: its policy, or what it was sent."""
    return presence.phase == "failed" and presence.round == 0
