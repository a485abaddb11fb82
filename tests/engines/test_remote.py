"""A round over the network as the loop sees it: real board, upload store and shelf, no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from fedot.cards import RunCard, TaskCard
from fedot.compression.chain import chain_of
from fedot.compression.frames import FRAME_VALUES, FrameCodec
from fedot.compression.manifest import MAX_TEXT_BYTES
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.engines.remote import STATE_FILE, RemoteEngine, most_update_bytes
from fedot.errors import WireError
from fedot.messages import ClientFailure, ClientInfo, ClientResult, RoundTask, digest_of
from fedot.transport.binding import Binding
from fedot.transport.board import Board
from fedot.transport.limits import Limits
from fedot.transport.shelf import Shelf
from fedot.transport.upload import UploadStore

RUN = "run-a"
SITES = ("a", "b", "c")
CARD = '{"epsilon": 1.5, "bytes_after": {"float32": 4}, "received_bytes": 1}'
NUM_VALUES = 100
CARD_OF_RUN = RunCard(
    run_id=RUN,
    name="a run",
    bundle_digest="b" * 64,
    bundle_bytes=1,
    adapter="lora",
    adapter_parameters=NUM_VALUES,
    dtype="float32",
    max_tokens=32,
    rounds=3,
    planned_rounds=3,
    training=TrainingConfig(),
    privacy=PrivacyConfig(unit="none"),
    payload=PayloadConfig(),
    seed=7,
).model_dump_json()

Step = Callable[[], None]


def task(round: int = 1, deadline_s: float | None = None, quorum: int | None = None) -> RoundTask:
    return RoundTask(
        run_id=RUN,
        round=round,
        state=f"state {round}".encode(),
        learning_rate=0.1,
        training=TrainingConfig(),
        privacy=PrivacyConfig(unit="none"),
        payload=PayloadConfig(),
        planned_rounds=dict.fromkeys(SITES, 3),
        deadline_s=deadline_s,
        quorum=quorum,
    )


class Server:
    """One server's life: everything but the uploads is lost when the next one begins.

    Args:
        folder: where uploads and states are.
        left: who has withdrawn before.
    """

    def __init__(self, folder: Path, left: Sequence[str] = ()) -> None:
        self.now = 0.0
        self.store = UploadStore(folder / "uploads", Limits())
        self.board, self.shelf = Board(self.store.is_committed, lambda: self.now), Shelf()
        self.board.open_run(RUN, "b" * 64, dict.fromkeys(SITES, CARD_OF_RUN), left)
        self.states = folder / "states"
        self.received: dict[str, bytes] = {}
        self.revoked: set[str] = set()
        self.stop: str | None = None
        self._steps: Iterator[Step] = iter(())
        self.engine = RemoteEngine(
            self.board,
            self.store,
            self.shelf,
            self.states,
            [ClientInfo(name, name) for name in reversed(SITES)],
            lambda round: len(self.received),
            is_admitted=lambda site: site not in self.revoked,
            look=self._step,
            should_stop=lambda: self.stop,
            clock=lambda: self.now,
        )

    def _step(self) -> None:
        """What happens next, just before the engine waits; it must not wait in vain."""
        next(self._steps)()
        self.board.wake()

    def run(
        self, asked: RoundTask, *steps: Step, cohort: Sequence[str] = SITES
    ) -> list[ClientResult | ClientFailure]:
        """All answers of a round in which `steps` happen, one each time the engine waits."""
        self._steps = iter(steps)
        answers = []
        for answer in self.engine.run(asked, cohort):
            answers.append(answer)
            if isinstance(answer, ClientResult) and answer.payload != b"junk":
                self.received[answer.client] = answer.payload
        assert next(self._steps, None) is None, "the round ended before all of it had happened"
        return answers

    def sends(self, site: str, content: bytes | None = None, *, heard: bool = True) -> Step:
        """A site's update is committed; `heard`: its event comes too."""
        payload = content if content is not None else f"of {site}".encode()

        def send() -> None:
            binding = Binding(RUN, self.board.open_round(), site, sha256(payload).hexdigest())
            made = self.store.create(binding, len(payload), CARD)
            list(self.store.append(made.upload_id, site, 0, iter([payload])))
            self.store.commit(made.upload_id, binding)
            if heard:
                self.board.arrived(site, RUN, binding.round)

        return send

    def fails(self, site: str, reason: str) -> Step:
        return lambda: (self.board.report(site, RUN, 1, "failed", reason), None)[1]

    def passes(self, seconds: float) -> Step:
        return lambda: setattr(self, "now", self.now + seconds)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.store.close()


def names(answers: Sequence[ClientResult | ClientFailure]) -> list[str]:
    return [answer.client for answer in answers]


def reasons(answers: Sequence[ClientResult | ClientFailure]) -> dict[str, str]:
    return {each.client: each.reason for each in answers if isinstance(each, ClientFailure)}


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_results_come_as_they_arrive(server: Server, order: str) -> None:
    answers = server.run(task(), *map(server.sends, order))
    assert names(answers) == list(order)
    assert not reasons(answers)
    first = answers[0]
    assert isinstance(first, ClientResult)
    assert (first.payload, first.epsilon) == (f"of {order[0]}".encode(), 1.5)
    assert first.digest == digest_of(first.payload)


def test_update_whose_event_was_lost_is_found(server: Server) -> None:
    steps = [server.sends(site, heard=False) for site in SITES]
    assert names(server.run(task(), *steps)) == list(SITES)


def test_everybody_is_asked_for_their_own_card_of_the_one_state(server: Server) -> None:
    seen: list[TaskCard] = []

    def look() -> None:
        for site in SITES:
            answer = server.board.next_for(site, RUN, 0)
            seen.append(TaskCard.read(answer.text))
        (file,) = server.shelf.files(seen[0].state_digest)
        assert (file.name, file.sha256) == (STATE_FILE, digest_of(b"state 1"))

    server.run(task(), look, *map(server.sends, SITES))
    assert {card.state_digest for card in seen} == {digest_of(b"state 1")}
    assert len(seen) == 3


def test_restart_takes_what_is_there_and_waits_for_the_rest(tmp_path: Path) -> None:
    first = Server(tmp_path)

    def stop() -> None:
        first.stop = "the server is stopping"

    assert names(first.run(task(), first.sends("b"), stop)) == ["b"]
    first.store.close()
    second = Server(tmp_path)
    # The journal had not taken it before the kill.
    assert names(second.run(task(), second.sends("c"), second.sends("a"))) == ["b", "c", "a"]
    second.store.close()


def test_update_that_cannot_be_of_this_adapter_is_refused_by_its_size(server: Server) -> None:
    most = most_update_bytes(NUM_VALUES)
    seen: list[int | None] = []

    def look() -> None:
        posted = server.board.asked("a", RUN, 1)
        seen.append(posted.most_bytes if posted else None)

    # Past the limits of all runs, so as an older fedot let it in.
    steps = [look, server.sends("a", bytes(most)), server.sends("b", bytes(most + 1))]
    answers = server.run(task(), *steps, server.sends("c"))
    assert seen == [most]
    assert list(reasons(answers)) == ["b"]
    assert f"{most + 1} bytes" in reasons(answers)["b"]


@pytest.mark.parametrize("num_values", [1, FRAME_VALUES, 10 * FRAME_VALUES + 1])
@pytest.mark.parametrize(
    "chain",
    [
        "float32",
        "top_k(keep_ratio=1.0)+float32+planes+zstd",
        "top_k(keep_ratio=0.5)+float16(block=64)+deflate",
        "int8(block=64)+zstd",
        "nf4(block=64)",
    ],
)
def test_no_update_that_can_be_read_is_larger_than_is_taken(chain: str, num_values: int) -> None:
    codec = FrameCodec.of(chain_of(chain))
    full, rest = divmod(num_values, FRAME_VALUES)
    head_bytes = 2**8
    num_bytes = MAX_TEXT_BYTES + head_bytes
    for size in [FRAME_VALUES] * full + [rest] * (rest > 0):
        num_bytes += head_bytes + sum(section.most for section in codec.sections(size))
    assert num_bytes <= most_update_bytes(num_values)


def test_updates_from_before_a_restart_count_for_the_quorum(server: Server) -> None:
    server.received = {"a": b"of a"}
    asked = task(deadline_s=10, quorum=2)
    answers = server.run(asked, server.sends("b"), server.passes(11), cohort=("b", "c"))
    assert names(answers) == ["b", "c"]
    assert "late" in reasons(answers)["c"]


def test_deadline_with_quorum_names_who_is_late(server: Server) -> None:
    asked = task(deadline_s=10, quorum=1)
    answers = server.run(asked, server.passes(9), server.sends("b"), server.passes(2))
    assert names(answers) == ["b", "a", "c"]
    assert reasons(answers) == dict.fromkeys("ac", "late: no update within 10 s")


def test_deadline_without_quorum_waits_until_there_is_one(server: Server) -> None:
    asked = task(deadline_s=10, quorum=2)
    answers = server.run(asked, server.sends("a"), server.passes(99), server.sends("b"))
    assert names(answers) == ["a", "b", "c"]
    assert set(reasons(answers)) == {"c"}


def test_update_that_was_no_good_makes_no_quorum(server: Server) -> None:
    asked = task(deadline_s=10, quorum=1)
    answers = server.run(asked, server.sends("a", b"junk"), server.passes(99), server.sends("b"))
    assert names(answers) == ["a", "b", "c"]
    assert set(reasons(answers)) == {"c"}


def test_deadline_that_names_no_quorum_waits_for_everybody(server: Server) -> None:
    steps = [server.passes(1000), *map(server.sends, SITES)]
    assert not reasons(server.run(task(deadline_s=1), *steps))


def test_failed_site_is_named_with_its_reason_and_not_waited_for(server: Server) -> None:
    steps = [server.fails("b", "no budget"), server.sends("a"), server.sends("c")]
    assert reasons(server.run(task(), *steps)) == {"b": "no budget"}


def test_site_that_withdraws_is_not_waited_for_in_this_round_or_the_next(server: Server) -> None:
    def leave() -> None:
        server.board.leave("c", RUN)

    steps = [leave, server.sends("a"), server.sends("b")]
    assert reasons(server.run(task(1), *steps)) == {"c": "withdrew from the run"}
    steps = [server.sends("a"), server.sends("b")]
    assert reasons(server.run(task(2), *steps)) == {"c": "withdrew from the run"}


def test_site_that_withdrew_before_a_restart_is_not_waited_for(tmp_path: Path) -> None:
    server = Server(tmp_path, left=["a"])
    answers = server.run(task(), server.sends("b"), server.sends("c"))
    assert reasons(answers) == {"a": "withdrew from the run"}
    server.store.close()


def test_revoked_site_is_not_waited_for(server: Server) -> None:
    def revoke() -> None:
        server.revoked.add("a")

    answers = server.run(task(), server.sends("b"), revoke, server.sends("c"))
    assert reasons(answers) == {"a": "its certificate was revoked"}


def test_event_of_an_earlier_round_changes_nothing(server: Server) -> None:
    def stale() -> None:
        server.board.arrived("a", RUN, 1)

    answers = server.run(task(2), stale, *map(server.sends, SITES))
    assert names(answers) == list(SITES)


def test_reason_to_stop_ends_the_round_without_naming_anybody(server: Server) -> None:
    def stop() -> None:
        server.stop = "the server is stopping"

    assert names(server.run(task(deadline_s=1, quorum=0), server.sends("a"), stop)) == ["a"]
    assert not server.board.is_open("b", RUN, 1)


def test_cancelled_task_is_not_waited_for(server: Server) -> None:
    asked = task()
    assert server.run(asked, lambda: server.engine.cancel(asked.task_id)) == []


def test_after_a_round_nothing_is_asked_and_its_state_is_gone(server: Server) -> None:
    server.run(task(), *map(server.sends, SITES))
    assert server.board.open_round() == 0
    assert not list(server.states.iterdir())
    with pytest.raises(WireError, match="nothing is offered"):
        server.shelf.files(digest_of(b"state 1"))


def test_uploads_are_kept_until_the_journal_has_the_round(server: Server) -> None:
    server.run(task(1), *map(server.sends, SITES))
    assert len(server.store.committed(RUN, 1)) == 3
    server.run(task(2), *map(server.sends, SITES))
    assert not server.store.committed(RUN, 1)
    assert len(server.store.committed(RUN, 2)) == 3


def test_uploads_are_dropped_over_a_round_that_nobody_was_asked(server: Server) -> None:
    server.run(task(3), *map(server.sends, SITES))
    # The run was rolled back: that closed round 4.
    server.run(task(5), *map(server.sends, SITES))
    assert not server.store.committed(RUN, 3)
    assert len(server.store.committed(RUN, 5)) == 3


def test_state_of_a_server_that_was_killed_is_removed_by_the_next(server: Server) -> None:
    server.states.mkdir()
    (server.states / "state-7").write_bytes(b"old")
    server.run(replace(task(8)), *map(server.sends, SITES))
    assert not list(server.states.iterdir())


def test_nobody_is_asked_where_the_journal_has_everything(server: Server) -> None:
    assert server.run(task(), cohort=()) == []
    assert [info.name for info in server.engine.clients()] == list(SITES)


def test_updates_of_a_round_before_one_that_went_back_are_dropped(server: Server) -> None:
    """Going back asks no site, so the engine is not called for that round."""
    for round in (1, 2):
        server.run(task(round), *map(server.sends, SITES))
    server.run(task(4), *map(server.sends, SITES))
    assert not [each for round in (1, 2, 3) for each in server.store.committed(RUN, round)]
    assert len(server.store.committed(RUN, 4)) == 3
