"""What a person at the server wants to hear of the sites: who came, went, refused, is late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedot.transport.notices import Presence

__all__ = ["Following", "told_of_absent"]

_AFTER_A_REFUSAL = (
    "Why, and what would fit, stands at the site. It can join again with another policy; or stop "
    "the job (fedot job abort) and submit one that asks for less, such as a smaller "
    "privacy.target_epsilon."
)


class Following:
    """Tells each piece of news once."""

    def __init__(self) -> None:
        self._known: dict[str, Presence] = {}

    def news(self, presences: Sequence[Presence]) -> Iterator[str]:
        """What has changed since the last call, a line each.

        Args:
            presences: every site as it is now.
        """
        for now in presences:
            old = self._known.get(now.site)
            self._known[now.site] = now
            if now.is_late and not (old is not None and old.is_late):
                yield f"{now.site} is late"
            if now.is_gone != (old is None or old.is_gone):
                yield f"{now.site} {'has gone silent' if now.is_gone else 'is in'}"
            if now.phase == "failed" and (old is None or _failure(old) != _failure(now)):
                why = now.reason or "no reason was given"
                if now.round:
                    yield f"{now.site} cannot do round {now.round}: {why}"
                else:
                    yield f"{now.site} refused the run: {why}. {_AFTER_A_REFUSAL}"


def told_of_absent(absent: Sequence[str], presences: Sequence[Presence]) -> str:
    """Who is missing, and who has refused the run and why.

    Args:
        absent: sites of the run that are not there.
        presences: every site as it is now.
    """
    refused = {p.site: p.reason for p in presences if (p.phase, p.round) == ("failed", 0)}
    missing = [name for name in absent if name not in refused]
    told = f"; missing: {', '.join(missing)}" if missing else ""
    return told + "".join(f"; refused: {n} ({refused[n]})" for n in absent if n in refused)


def _failure(presence: Presence) -> tuple[str, int]:
    return presence.phase, presence.round
