"""What a person at the server hears of the sites: each piece of news once."""

from __future__ import annotations

from dataclasses import replace

from fedot.federation.following import Following, told_of_absent
from fedot.transport.notices import Presence

ABSENT = Presence("a", "absent", 0, 0, is_gone=True)
IDLE = Presence("a", "idle", 0, 0)


def test_coming_and_going_is_told_once() -> None:
    following = Following()
    told = [
        list(following.news([each]))
        for each in (ABSENT, IDLE, IDLE, replace(IDLE, phase="train"), replace(IDLE, is_gone=True))
    ]
    assert told == [[], ["a is in"], [], [], ["a has gone silent"]]


def test_late_is_told_once_a_round() -> None:
    following = Following()
    late = replace(IDLE, is_late=True)
    told = [list(following.news([each])) for each in (IDLE, late, late, IDLE, late)]
    assert told == [["a is in"], ["a is late"], [], [], ["a is late"]]


def test_failure_is_told_with_its_round_and_reason() -> None:
    following = Following()
    in_round = replace(IDLE, phase="failed", round=2, reason="no budget")
    of_run = replace(in_round, round=0, reason="")
    told = [list(following.news([each])) for each in (IDLE, in_round, in_round, of_run)]
    assert told[1:3] == [["a cannot do round 2: no budget"], []]
    assert told[3][0].startswith("a refused the run: no reason was given. ")


def test_who_refused_is_not_called_missing() -> None:
    refused = replace(IDLE, site="b", phase="failed", reason="its policy")
    assert told_of_absent(["a", "b"], [ABSENT, refused]) == "; missing: a; refused: b (its policy)"
    assert told_of_absent(["a"], [ABSENT, refused]) == "; missing: a"
    assert told_of_absent([], [IDLE]) == ""


def test_refusal_of_the_run_names_what_can_be_done() -> None:
    refused = replace(IDLE, phase="failed", reason="its policy does not allow it")
    (line,) = [line for line in Following().news([refused]) if "refused" in line]
    assert line.startswith("a refused the run: its policy does not allow it. ")
    assert "fedot job abort" in line
    assert "privacy.target_epsilon" in line
