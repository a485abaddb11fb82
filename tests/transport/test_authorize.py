"""Roles and hooks: what each may, and that a hook can only refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from fedot.errors import BudgetError, ConfigError, ProtocolError
from fedot.transport.authorize import MAY, Action, Asked, Authorizer, load_hooks
from fedot.transport.members import Peer, Role

ACTIONS: tuple[Action, ...] = get_args(Action)
# docs/transport.md, "Who is who".
TABLE: dict[Role, set[str]] = {
    "owner": {"hello", "submit", "list", "show", "abort", "resume", "roll_back", "fetch"},
    "site": {"hello", "take_part", "next", "report", "leave", "download", "upload"},
    "observer": {"hello", "list", "show"},
}


def asked(role: Any = "site", action: Any = "next", **details: str) -> Asked:
    return Asked(Peer("hospital-a", role, "0" * 64), action, details)


@pytest.mark.parametrize("role", get_args(Role))
@pytest.mark.parametrize("action", ACTIONS)
def test_each_role_may_what_the_table_says_and_nothing_else(role: Role, action: Action) -> None:
    if action in TABLE[role]:
        Authorizer().check(asked(role, action))
    else:
        with pytest.raises(ProtocolError, match=f"hospital-a is {role} and may not"):
            Authorizer().check(asked(role, action))


def test_every_role_and_action_is_in_the_table() -> None:
    assert set(MAY) == set(get_args(Role))
    assert set().union(*MAY.values()) == set(ACTIONS)


@pytest.mark.parametrize(("role", "action"), [("king", "next"), ("site", "invented")])
def test_what_no_table_knows_is_refused(role: str, action: str) -> None:
    with pytest.raises(ProtocolError, match="may not"):
        Authorizer().check(asked(role, action))


def test_a_hook_that_allows_cannot_widen_a_role() -> None:
    seen: list[Asked] = []
    with pytest.raises(ProtocolError, match="may not submit"):
        Authorizer({"yes": seen.append}).check(asked("site", "submit"))
    assert not seen


def test_a_hook_sees_who_wants_what_and_cannot_change_it() -> None:
    seen: list[Asked] = []
    details = {"run": "r1", "epsilon": "8"}
    Authorizer({"look": seen.append}).check(asked(**details))
    assert (seen[0].peer.name, seen[0].action, dict(seen[0].details)) == (
        "hospital-a",
        "next",
        details,
    )
    with pytest.raises(TypeError):
        seen[0].details["epsilon"] = "100"  # type: ignore[index]


def crash(_: Asked) -> None:
    raise ZeroDivisionError("secret of the hook")


def refuse(_: Asked) -> None:
    raise BudgetError("too much")


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (lambda _: "not at night", "not at night"),
        (lambda _: "", "refused"),
        (refuse, "too much"),
        (crash, "failed with ZeroDivisionError"),
        (lambda _: True, "neither nothing nor a reason"),
        (lambda _: False, "neither nothing nor a reason"),
    ],
)
def test_whatever_a_hook_does_but_return_nothing_refuses(hook: Any, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason) as refused:
        Authorizer({"first": lambda _: None, "rule": hook}).check(asked())
    assert "rule refused" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_hooks_reason_stays_one_short_line() -> None:
    with pytest.raises(ProtocolError) as refused:
        Authorizer({"long": lambda _: "a\nb\x1b[2J" + "x" * 9999}).check(asked())
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`package("name = module:thing", code)`: an installed distribution with an entry point."""

    def install(entry: str, code: str) -> None:
        info = tmp_path / "our_rules-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: our-rules\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fedot.authorize]\n{entry}\n")
        (tmp_path / "our_rules.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "our_rules", raising=False)

    yield install
    sys.modules.pop("our_rules", None)


def test_an_installed_hook_is_asked(package: Any) -> None:
    code = "def lid(asked):\n    return 'only r1' if asked.details['run'] != 'r1' else None\n"
    package("lid = our_rules:lid", code)
    authorizer = Authorizer(load_hooks())
    authorizer.check(asked(run="r1"))
    with pytest.raises(ProtocolError, match="lid refused: only r1"):
        authorizer.check(asked(run="r2"))


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ("lid = our_rules:missing", ""),
        ("lid = our_rules:lid", "import nothing_like_this"),
        ("lid = our_rules:lid", "lid = 3"),
    ],
)
def test_a_hook_that_cannot_be_loaded_stops_the_start(package: Any, entry: str, code: str) -> None:
    package(entry, code)
    with pytest.raises(ConfigError, match="the authorization hook lid"):
        load_hooks()


def test_without_packages_there_are_no_hooks() -> None:
    assert load_hooks() == {}
