"""What sites are told, and what the engine hears, whatever the order of calls."""

from __future__ import annotations

import threading

import pytest

from fedot.transport.board import Board
from fedot.transport.notices import Posted

RUN, OTHER = "run-a", "run-b"
BUNDLE, STATE = "b" * 64, "5" * 64


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def here() -> set[tuple[str, str, int]]:
    """Updates that are committed."""
    return set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(here: set[tuple[str, str, int]], clock: Clock) -> Board:
    return Board(lambda site, run, round: (site, run, round) in here, clock)


def opened(board: Board, *sites: str, left: tuple[str, ...] = ()) -> None:
    board.open_run(RUN, BUNDLE, {site: f"card of {site}" for site in sites}, left)


def posted(board: Board, round: int, *sites: str) -> None:
    board.post(Posted(RUN, round, STATE, {site: f"task {round} of {site}" for site in sites}))


def told(board: Board, site: str, run_id: str = RUN) -> tuple[str, str]:
    answer = board.next_for(site, run_id, 0)
    return answer.what, answer.text


def test_site_is_told_of_the_run_then_of_its_task_then_that_it_is_over(board: Board) -> None:
    assert told(board, "a", "")[0] == "wait"
    opened(board, "a", "b")
    assert told(board, "a", "") == ("run", "card of a")
    assert told(board, "a")[0] == "wait"
    posted(board, 1, "a", "b")
    assert told(board, "a") == ("task", "task 1 of a")
    board.close_run(RUN, "done")
    assert told(board, "a") == ("over", "done")


def test_task_is_asked_again_until_its_update_is_committed(
    board: Board, here: set[tuple[str, str, int]]
) -> None:
    opened(board, "a")
    posted(board, 1, "a")
    assert told(board, "a")[0] == told(board, "a")[0] == "task"
    here.add(("a", RUN, 1))
    assert told(board, "a")[0] == "wait"
    posted(board, 2, "a")
    assert told(board, "a") == ("task", "task 2 of a")


def test_only_the_cohort_is_asked(board: Board) -> None:
    opened(board, "a", "b")
    posted(board, 1, "b")
    assert told(board, "a")[0] == "wait"
    assert not board.is_open("a", RUN, 1)
    assert board.is_open("b", RUN, 1)
    assert not board.is_open("b", RUN, 2)
    assert not board.is_open("b", OTHER, 1)


def test_site_that_is_in_another_run_is_told_of_this_one(board: Board) -> None:
    opened(board, "a")
    assert told(board, "a", OTHER) == ("run", "card of a")


def test_stranger_to_the_run_waits(board: Board) -> None:
    opened(board, "a")
    assert told(board, "z", "")[0] == "wait"
    assert not board.is_in("z", RUN)


def test_who_left_is_out_for_good_also_after_a_restart(board: Board) -> None:
    opened(board, "a", "b")
    posted(board, 1, "a", "b")
    board.leave("a", RUN)
    event = board.next_event(0)
    assert event is not None
    assert (event.kind, event.site) == ("left", "a")
    assert told(board, "a") == ("over", "withdrawn")
    opened(board, "a", "b", left=("a",))
    posted(board, 2, "a", "b")
    assert told(board, "a") == ("over", "withdrawn")
    assert not board.is_open("a", RUN, 2)


def test_failure_is_heard_once_and_ends_the_site_s_part_in_the_round(board: Board) -> None:
    opened(board, "a")
    posted(board, 1, "a")
    assert not board.report("a", RUN, 1, "failed", "no budget")
    event = board.next_event(0)
    assert event is not None
    assert (event.kind, event.site, event.round, event.reason) == ("failed", "a", 1, "no budget")
    assert board.report("a", RUN, 1, "failed", "no budget")
    assert board.next_event(0) is None
    assert told(board, "a")[0] == "wait"
    posted(board, 2, "a")
    assert told(board, "a")[0] == "task"


def test_who_works_on_a_closed_round_is_told_to_stop(board: Board) -> None:
    opened(board, "a")
    posted(board, 1, "a")
    assert not board.report("a", RUN, 1, "train")
    board.retract()
    assert board.report("a", RUN, 1, "train")


def test_events_of_an_earlier_round_are_not_heard_in_the_next(board: Board) -> None:
    opened(board, "a")
    posted(board, 1, "a")
    board.arrived("a", RUN, 1)
    posted(board, 2, "a")
    assert board.next_event(0) is None


def test_waiting_site_is_woken_by_a_task(board: Board) -> None:
    opened(board, "a")
    heard: list[str] = []
    site = threading.Thread(target=lambda: heard.append(board.next_for("a", RUN, 60).what))
    site.start()
    posted(board, 1, "a")
    site.join(30)
    assert heard == ["task"]


def test_phase_lasts_from_its_first_report(board: Board, clock: Clock) -> None:
    opened(board, "a")
    posted(board, 1, "a")
    board.report("a", RUN, 1, "train")
    clock.now += 7
    board.report("a", RUN, 1, "train")
    clock.now += 2
    (presence,) = board.presences()
    assert (presence.phase, presence.since, presence.seen) == ("train", 9, 2)


def test_present_are_those_who_called_lately_and_not_those_who_only_look(
    board: Board, clock: Clock
) -> None:
    told(board, "a", "")
    board.next_for("b", "", 0, peek=True)
    assert board.present() == ["a"]
    clock.now += 3600
    assert board.present() == []


def test_only_what_belongs_to_the_open_run_is_offered(board: Board) -> None:
    opened(board, "a")
    assert board.offers("a", RUN, 0, BUNDLE)
    assert not board.offers("a", RUN, 1, BUNDLE)
    assert not board.offers("a", RUN, 0, STATE)
    assert not board.offers("a", RUN, 0, "")
    posted(board, 2, "a")
    assert board.offers("a", RUN, 2, STATE)
    assert not board.offers("a", RUN, 1, STATE)
    assert not board.offers("b", RUN, 2, STATE)
    assert not board.offers("a", OTHER, 0, BUNDLE)
    board.retract()
    assert not board.offers("a", RUN, 2, STATE)


def test_run_that_is_taken_up_again_is_not_over_any_more(board: Board) -> None:
    opened(board, "a")
    board.close_run(RUN, "failed")
    assert told(board, "a") == ("over", "failed")
    opened(board, "a")
    assert told(board, "a", "") == ("run", "card of a")
    assert told(board, "a")[0] == "wait"


def test_who_withdrew_and_comes_back_waits_for_the_next_run(board: Board) -> None:
    opened(board, "a", left=("a",))
    assert told(board, "a", "")[0] == "wait"


def test_site_that_asks_again_frees_the_thread_of_its_earlier_call(board: Board) -> None:
    opened(board, "a")
    heard: list[str] = []
    asked = threading.Event()

    def ask() -> None:
        asked.set()
        heard.append(board.next_for("a", RUN, 3600).what)

    first = threading.Thread(target=ask)
    first.start()
    assert asked.wait(30)
    # Whichever of the two came last goes on waiting, so this one does not wait at all.
    for _ in range(600):
        if first.is_alive():
            board.next_for("a", RUN, 0)
            first.join(0.05)
    answers = list(heard)
    board.shut()
    first.join(30)
    assert answers == ["wait"]


def test_site_that_refuses_a_run_does_not_count_as_present_until_it_comes_again(
    board: Board,
) -> None:
    opened(board, "a")
    told(board, "a")
    board.report("a", RUN, 0, "failed", "the policy")
    assert board.present() == []
    assert [p.reason for p in board.presences()] == ["the policy"]
    told(board, "a", "")
    assert board.present() == ["a"]


def test_late_is_who_was_asked_and_has_not_answered_by_the_deadline(
    board: Board, clock: Clock, here: set[tuple[str, str, int]]
) -> None:
    opened(board, "a", "b", "c")
    board.post(Posted(RUN, 1, STATE, {"a": "", "b": ""}, deadline_s=10))
    here.add(("a", RUN, 1))
    clock.now += 9
    assert not any(presence.is_late for presence in board.presences())
    clock.now += 2
    assert [p.site for p in board.presences() if p.is_late] == ["b"]
    assert [p.phase for p in board.presences()] == ["absent"] * 3


def waiting_for_all(board: Board) -> tuple[threading.Thread, threading.Event]:
    """A server that wants to end, and whether it has."""
    ended = threading.Event()

    def wait() -> None:
        board.wait_until_told(60)
        ended.set()

    server = threading.Thread(target=wait)
    server.start()
    return server, ended


def test_server_waits_until_everybody_says_that_it_heard_of_the_end(board: Board) -> None:
    """To have answered is not enough: the process that asked may have been killed."""
    opened(board, "a", "b")
    told(board, "a")
    told(board, "b")
    board.close_run(RUN, "done")
    server, ended = waiting_for_all(board)
    assert told(board, "a") == told(board, "b") == ("over", "done")
    board.report("a", RUN, 0, "over")
    assert not ended.wait(0.05)
    board.report("b", RUN, 0, "over")
    server.join(30)
    assert ended.is_set()


def test_run_that_goes_on_is_expected_until_it_asks_something(board: Board) -> None:
    board.expect(RUN, ["a"])
    board.expect(OTHER, ["a"])
    assert board.is_expected(RUN, "a")
    assert board.present() == ["a"], "a resumed run waits for its sites, and this one has called"
    opened(board, "a")
    assert board.is_expected(RUN, "a")
    posted(board, 3, "a")
    assert not board.is_expected(RUN, "a")
    board.close_run(OTHER, "done")
    assert not board.is_expected(OTHER, "a")


def test_site_that_never_was_in_a_run_is_not_told_of_its_end(board: Board) -> None:
    """It waits for the next one."""
    board.expect(RUN, ["a", "b"])
    board.close_run(RUN, "done")
    assert told(board, "b", "")[0] == "wait"
    assert told(board, "a", RUN) == ("over", "done")


@pytest.mark.parametrize("is_opened", [True, False])
def test_server_that_goes_on_waits_at_the_end_for_sites_that_have_not_called_yet(
    board: Board, is_opened: bool
) -> None:
    """Everything was there for the last round: nobody had a reason to notice that it is back."""
    board.expect(RUN, ["a"])
    if is_opened:
        opened(board, "a")
        posted(board, 3, "a")
    board.close_run(RUN, "done")
    server, ended = waiting_for_all(board)
    assert not ended.wait(0.05)
    board.report("a", RUN, 0, "over")
    server.join(30)
    assert ended.is_set()


def test_refusal_of_one_run_is_none_of_the_next(board: Board) -> None:
    opened(board, "a")
    told(board, "a", "")
    board.report("a", RUN, 0, "failed", "its policy")
    assert [each.phase for each in board.presences()] == ["failed"]
    board.close_run(RUN, "aborted")
    board.open_run(OTHER, BUNDLE, {"a": "card of a"})
    assert [each.phase for each in board.presences()] == ["absent"]
