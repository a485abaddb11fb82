"""The journal: every update counts once, rounds close in order, and a kill at any point is safe."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest

from fedot.errors import ConfigError, ProtocolError
from fedot.journal import Journal, Update, write_durably
from fedot.messages import digest_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path):
    """Round 0 is closed, round 1 is open."""
    with Journal(path) as opened:
        opened.close_round(0, b"state 0", {"round": 0})
        yield opened


def test_new_journal_has_no_round(path):
    with Journal(path) as journal:
        assert journal.last_closed() == -1
        assert journal.received(0) == []
        assert journal.metrics() == []
        assert journal.fact("run_id") is None


def test_update_is_kept_with_its_digest_and_metadata(journal):
    journal.accept(1, "a", b"bytes", {"epsilon": 0.5})
    assert journal.received(1) == [Update("a", digest_of(b"bytes"), {"epsilon": 0.5})]
    assert journal.payload(digest_of(b"bytes")) == b"bytes"


def test_same_update_again_changes_nothing(journal):
    journal.accept(1, "a", b"bytes", {"epsilon": 0.5})
    journal.accept(1, "a", b"bytes", {"epsilon": 9.9})
    assert journal.received(1) == [Update("a", digest_of(b"bytes"), {"epsilon": 0.5})]


def test_another_update_of_the_same_client_is_a_conflict_and_the_first_counts(journal):
    journal.accept(1, "a", b"first", {})
    with pytest.raises(ProtocolError, match="a has already sent another update for round 1"):
        journal.accept(1, "a", b"second", {})
    assert [update.digest for update in journal.received(1)] == [digest_of(b"first")]


def test_two_clients_may_send_the_same_bytes(journal):
    journal.accept(1, "a", b"zeros", {})
    journal.accept(1, "b", b"zeros", {})
    assert [update.client for update in journal.received(1)] == ["a", "b"]


def test_updates_come_in_client_order_whatever_order_they_came_in(journal):
    for client in ("b", "c", "a", "B", "ä"):
        journal.accept(1, client, client.encode(), {})
    assert [update.client for update in journal.received(1)] == sorted(["b", "c", "a", "B", "ä"])


def test_update_for_a_closed_round_comes_too_late(journal):
    journal.accept(1, "a", b"bytes", {})
    journal.close_round(1, b"state 1", {})
    for round in (0, 1):
        with pytest.raises(ProtocolError, match=f"round {round} is closed; b's update came too"):
            journal.accept(round, "b", b"late", {})
    assert [update.client for update in journal.received(1)] == ["a"]


def test_same_update_after_the_round_is_closed_comes_too_late_as_well(journal):
    journal.accept(1, "a", b"bytes", {})
    journal.close_round(1, b"state 1", {})
    with pytest.raises(ProtocolError, match="is closed"):
        journal.accept(1, "a", b"bytes", {})


@pytest.mark.parametrize("round", [-1, 0, 2, 7])
def test_only_the_next_round_can_be_closed(journal, round):
    with pytest.raises(ProtocolError, match="the last closed one is 0"):
        journal.close_round(round, b"state", {})
    assert journal.last_closed() == 0
    assert journal.state(0) == b"state 0"


def test_states_and_metrics_are_those_of_their_rounds(journal):
    journal.close_round(1, b"state 1", {"round": 1, "loss": 2.5})
    journal.close_round(2, b"state 2", {"round": 2, "loss": None})
    assert [journal.state(n) for n in range(3)] == [b"state 0", b"state 1", b"state 2"]
    assert journal.metrics() == [
        {"round": 0},
        {"round": 1, "loss": 2.5},
        {"round": 2, "loss": None},
    ]
    with pytest.raises(ProtocolError, match="round 3 is not closed"):
        journal.state(3)


def test_bytes_of_updates_go_once_their_round_is_closed(journal):
    journal.accept(1, "a", b"bytes", {})
    journal.close_round(1, b"state 1", {})
    with pytest.raises(ProtocolError, match="is missing from the journal"):
        journal.payload(digest_of(b"bytes"))


def test_bytes_stay_that_are_also_a_state_or_an_update_of_an_open_round(journal):
    journal.accept(1, "a", b"state 1", {})
    journal.accept(1, "b", b"zeros", {})
    journal.accept(2, "b", b"zeros", {})  # arrived early
    journal.close_round(1, b"state 1", {})
    assert journal.state(1) == b"state 1"
    assert journal.payload(digest_of(b"zeros")) == b"zeros"


@pytest.mark.parametrize("kept_first", [True, False])
def test_bytes_that_were_kept_for_good_stay_when_an_update_has_the_same(journal, kept_first):
    """An update of zeros is, to the bit, what Adam remembers after it."""
    steps = [lambda: journal.keep(b"zeros"), lambda: journal.accept(1, "a", b"zeros", {})]
    for step in steps if kept_first else reversed(steps):
        step()
    journal.close_round(1, b"state 1", {})
    assert journal.payload(digest_of(b"zeros")) == b"zeros"


def test_everything_survives_opening_again(path):
    with Journal(path) as journal:
        journal.note("run_id", "run-1")
        journal.close_round(0, b"state 0", {"loss": 0.1})
        journal.accept(1, "a", b"bytes", {"n": 1})
    with Journal(path) as journal:
        assert journal.fact("run_id") == "run-1"
        assert journal.last_closed() == 0
        assert journal.state(0) == b"state 0"
        assert journal.metrics() == [{"loss": 0.1}]
        assert journal.received(1) == [Update("a", digest_of(b"bytes"), {"n": 1})]
        journal.close_round(1, b"state 1", {})


@pytest.mark.parametrize("value", ["text", 3, 0.1 + 0.2, None, [1, {"a": True}], {"é": []}])
def test_facts_come_back_as_they_were(journal, value):
    journal.note("key", value)
    assert journal.fact("key") == value


def test_later_fact_takes_the_place_of_the_earlier(journal):
    journal.note("key", 1)
    journal.note("key", 2)
    assert journal.fact("key") == 2


@pytest.mark.parametrize("damage", [b"", b"byte", b"Bytes", b"bytes "])
def test_damaged_payload_is_never_handed_out(journal, path, damage):
    journal.accept(1, "a", b"bytes", {})
    (path.parent / "payloads" / digest_of(b"bytes")).write_bytes(damage)
    with pytest.raises(ProtocolError, match="is damaged on disk"):
        journal.payload(digest_of(b"bytes"))


def test_damaged_state_is_never_handed_out(journal, path):
    (path.parent / "payloads" / digest_of(b"state 0")).write_bytes(b"state 1")
    with pytest.raises(ProtocolError, match="is damaged on disk"):
        journal.state(0)


@pytest.mark.parametrize("content", [b"not a database, but long enough to look at", b"\0" * 4096])
def test_file_that_is_no_journal_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is no journal"):
        Journal(path)


def test_folder_in_place_of_a_journal_is_refused(path):
    path.mkdir()
    with pytest.raises(ConfigError, match="is no journal"):
        Journal(path)


def test_journal_is_written_through_to_the_disk(path):
    with Journal(path) as journal:
        assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_failed_close_leaves_the_round_open(journal, path):
    class Broken:
        """Metrics that cannot become JSON."""

    with pytest.raises(TypeError):
        journal.close_round(1, b"state 1", {"odd": Broken()})
    assert journal.last_closed() == 0
    journal.close_round(1, b"state 1", {})
    # No transaction was left open: another connection reads what was closed.
    other = sqlite3.connect(path)
    assert other.execute("SELECT COUNT(*) FROM round").fetchone() == (2,)
    other.close()


def test_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def start(script: str, path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(timeout=30)
    assert process.stdout is not None
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


WRITER = """
    import sys
    from pathlib import Path
    from fedot.journal import write_durably

    print("ready", flush=True)
    while True:
        for letter in (b"a", b"b"):
            write_durably(Path(sys.argv[1]), letter * 20_000_000)
"""


def test_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    path, rng = tmp_path / "file", random.Random(0)
    write_durably(path, b"a" * 20_000_000)
    for _ in range(4):
        writer = start(WRITER, path)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        stop = time.monotonic() + rng.uniform(0.05, 0.25)
        while time.monotonic() < stop:
            assert path.stat().st_size == 20_000_000, "a reader saw half a file"
        kill(writer)
        content = path.read_bytes()
        assert len(content) == 20_000_000
        assert content.count(content[:1]) == len(content)


SERVER = """
    import sys, time
    from pathlib import Path
    from fedot.journal import Journal

    journal = Journal(Path(sys.argv[1]))
    journal.note("run_id", "run-1")
    journal.close_round(0, b"state 0", {"round": 0})
    for client in ("b", "a"):
        journal.accept(1, client, f"update of {client}".encode(), {"client": client})
    print("accepted", flush=True)
    time.sleep(600)
"""


def test_server_killed_between_accept_and_close_goes_on_in_that_round(path):
    server = start(SERVER, path)
    assert server.stdout is not None
    assert server.stdout.readline() == "accepted\n"
    kill(server)
    with Journal(path) as journal:
        assert journal.fact("run_id") == "run-1"
        assert journal.last_closed() == 0
        received = journal.received(1)
        assert [update.client for update in received] == ["a", "b"]
        payloads = [journal.payload(update.digest) for update in received]
        assert payloads == [b"update of a", b"update of b"]
        # What the clients sent before the kill is known; the same again is no second update.
        journal.accept(1, "a", b"update of a", {})
        with pytest.raises(ProtocolError, match="already sent another"):
            journal.accept(1, "b", b"trained again", {})
        journal.accept(1, "c", b"update of c", {})
        journal.close_round(1, b"state 1", {"round": 1})
        assert journal.last_closed() == 1


BUSY_SERVER = """
    import sys
    from pathlib import Path
    from fedot.journal import Journal

    journal = Journal(Path(sys.argv[1]))
    if journal.last_closed() < 0:
        journal.close_round(0, b"state 0", {"round": 0})
    print("ready", flush=True)
    while True:
        round = journal.last_closed() + 1
        for client in ("a", "b", "c"):
            journal.accept(round, client, f"{client}{round}".encode() * 5000, {})
        journal.close_round(round, f"state {round}".encode() * 5000, {"round": round})
"""


def test_server_killed_at_any_moment_leaves_no_row_without_its_bytes(path):
    rng = random.Random(0)
    closed = 0
    for _ in range(6):
        server = start(BUSY_SERVER, path)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.2))
        kill(server)
        with Journal(path) as journal:
            last = journal.last_closed()
            assert last >= closed, "a closed round was lost"
            closed = last
            assert [line["round"] for line in journal.metrics()] == list(range(last + 1))
            for round in range(1, last + 1):
                assert journal.state(round) == f"state {round}".encode() * 5000
            for update in journal.received(last + 1):
                payload = journal.payload(update.digest)
                assert payload == f"{update.client}{last + 1}".encode() * 5000
    assert closed > 0, "no server got as far as closing a round; the test saw nothing"


@pytest.mark.parametrize(
    "module",
    [
        "fedot",
        "fedot.config",
        "fedot.config_text",
        "fedot.data.python_library",
        "fedot.data.records",
        "fedot.errors",
        "fedot.federation.folder",
        "fedot.journal",
        "fedot.messages",
        "fedot.seeds",
    ],
)
def test_light_module_imports_no_heavy_library(module):
    script = f"""
        import json, sys
        import {module}
        print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "numpy", "transformers", "peft", "opacus", "dp_accounting", "pyarrow"}
    assert not heavy & set(json.loads(done.stdout))
