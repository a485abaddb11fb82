"""Who may do what: the table of roles, then hooks that can only refuse.

Design note: a hook is somebody else's rule: an entry point in the group `fedot.authorize`, a
callable that gets an `Asked` and returns None, or returns or raises why not. Whatever else it does,
also crash, refuses. A server asks for every call; a site asks with itself as the peer before it
takes part in a run, with `details` that say what it would train, send and spend. Details are names,
digests and limits; no content.

    [project.entry-points."fedot.authorize"]
    only-office-hours = "our_rules:only_office_hours"
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Literal

from fedot.errors import ConfigError, FedotError, ProtocolError
from fedot.transport.members import Peer, Role

__all__ = [
    "MAY",
    "Action",
    "Asked",
    "Authorizer",
    "Hook",
    "HookRefusal",
    "RoleRefusal",
    "load_hooks",
]

Action = Literal[
    "hello",
    "take_part",
    "next",
    "report",
    "leave",
    "download",
    "upload",
    "submit",
    "list",
    "show",
    "abort",
    "resume",
    "roll_back",
    "fetch",
]
"""A call, as roles and hooks know it; watching is `show`, again and again.

`take_part` is no call: a site asks its own hooks with it.
"""

MAY: Mapping[Role, frozenset[Action]] = {
    "owner": frozenset(
        {"hello", "submit", "list", "show", "abort", "resume", "roll_back", "fetch"}
    ),
    "site": frozenset({"hello", "take_part", "next", "report", "leave", "download", "upload"}),
    "observer": frozenset({"hello", "list", "show"}),
}
"""What each role may; everything else is refused."""

_GROUP = "fedot.authorize"
_MOST_CHARACTERS = 300
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants to do.

    Attributes:
        details: for example run, round, digest, adapter, chain, epsilon: as text, not changeable.
    """

    peer: Peer
    action: Action
    details: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "details", MappingProxyType(dict(self.details)))


Hook = Callable[[Asked], str | None]
"""Returns None to let it pass, or why not."""


class RoleRefusal(ProtocolError):
    """A role may not do this."""


class HookRefusal(ProtocolError):
    """A hook refused, or failed."""


class Authorizer:
    """Decides on every call.

    Args:
        hooks: by name; asked in this order after the roles.
    """

    def __init__(self, hooks: Mapping[str, Hook] | None = None):
        self._hooks = dict(hooks or {})

    def check(self, asked: Asked) -> None:
        """Let it pass, or refuse.

        Raises:
            RoleRefusal: the role may not.
            HookRefusal: a hook refused or failed.
        """
        peer = asked.peer
        if asked.action not in MAY.get(peer.role, frozenset()):
            raise RoleRefusal(
                f"{peer.name} is {peer.role} and may not {asked.action.replace('_', ' ')}; ask the "
                "owner for another role."
            )
        for name, hook in self._hooks.items():
            reason = _reason(name, hook, asked)
            if reason is not None:
                raise HookRefusal(
                    f"{peer.name} may not {asked.action.replace('_', ' ')}: {name} refused: "
                    f"{_one_line(reason)}"
                )


def load_hooks() -> dict[str, Hook]:
    """The hooks that are installed here, in the order of their names.

    Raises:
        ConfigError: one cannot be loaded; going on without it would allow what it refuses.
    """
    hooks: dict[str, Hook] = {}
    for entry in sorted(entry_points(group=_GROUP), key=lambda each: each.name):
        try:
            hook = entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the authorization hook {entry.name} ({entry.value}) cannot be loaded: "
                f"{type(error).__name__}. Repair or uninstall its package."
            ) from error
        if not callable(hook) or entry.name in hooks:
            raise ConfigError(
                f"the authorization hook {entry.name} ({entry.value}) must be a callable, once. "
                "Repair or uninstall its package."
            )
        hooks[entry.name] = hook
    return hooks


def _reason(name: str, hook: Hook, asked: Asked) -> str | None:
    """Why a hook refuses, or None."""
    try:
        reason = hook(asked)
    except FedotError as error:
        return str(error)
    # Somebody else's code: whatever it raises, it did not say yes, and the server goes on.
    except Exception as error:
        _log.exception("authorization hook %s failed", name)
        return f"it failed with {type(error).__name__}; ask who runs it."
    if reason is None or isinstance(reason, str):
        return reason
    return "its answer is neither nothing nor a reason; ask who runs it."


def _one_line(text: str) -> str:
    """A hook's text goes to a peer and into logs."""
    return "".join(c if c.isprintable() else " " for c in text[:_MOST_CHARACTERS])
