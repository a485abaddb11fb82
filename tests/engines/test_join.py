"""A site's loop against a real server over TLS: friendly, hostile, away, or of another owner."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from site_party import PATIENCE_S, PRIVATE, Party
from whole_server import RUN

from fedot.cards import ResultCard
from fedot.emulator.manifest import MANIFEST
from fedot.engines.join import _FAILURES
from fedot.engines.open_site import open_site
from fedot.engines.waiting import Waiting
from fedot.errors import (
    BudgetError,
    ConfigError,
    FedotError,
    PeerTimeout,
    ProtocolError,
    TransportError,
    WireError,
)
from fedot.journal import write_durably
from fedot.transport import fedot_pb2 as pb
from fedot.transport.authorize import Asked
from fedot.transport.errors import OutOfStep
from fedot.transport.identity import init_owner, read_kit, request_certificate, sign_request


def test_site_does_every_round_and_hears_that_the_run_is_over(party: Party, bundle: Path) -> None:
    party.opens(bundle)
    party.joins()
    for round in (1, 2):
        party.posts(round, bundle)
        party.wait_for(lambda round=round: party.net.hub.uploads.committed(RUN, round))
        (committed,) = party.net.hub.uploads.committed(RUN, round)
        assert ResultCard.read(committed.metadata).epsilon is None
    party.net.hub.board.close_run(RUN, "done")
    party.wait_for(lambda: party.outcome)
    assert "the run is done" in str(party.outcome[0])
    assert any(line.startswith("round 2 done") for line in party.said)


def test_bundle_is_one_stage_that_ends_when_it_is_there(party: Party, bundle: Path) -> None:
    party.opens(bundle)
    party.joins()
    party.wait_for(lambda: "ready; waiting for rounds" in party.said)
    moved = [(done, total) for stage, done, total in party.moved if stage == "get bundle"]
    files = sum(path.stat().st_size for path in bundle.iterdir() if path.name != MANIFEST)
    assert {total for _, total in moved} == {files}
    assert [done for done, _ in moved] == sorted(done for done, _ in moved)
    assert [done for done, total in moved if done >= total] == [files]


def test_kit_of_another_owner_than_was_read_out_is_refused(party: Party) -> None:
    pki = party.net.folder / "pki" / "a.kit.json"
    line = read_kit(pki).owner
    files = (party.net.folder / "keys" / "a.key", party.home / "policy.yaml", party.records)
    party.home.mkdir()
    files[1].write_text("{dataset_id: a, max_epsilon: null, delta: 1.0e-5}")
    with open_site(party.net.where, pki, *files, party.home, owner_line=f" {line.upper()}"):
        pass
    with pytest.raises(ConfigError, match="not of the one that --owner names"):
        open_site(party.net.where, pki, *files, party.home, owner_line=line[::-1])
    assert not (party.home / "owner").exists()


def test_bundle_of_an_earlier_run_makes_room(party: Party, bundle: Path) -> None:
    old = party.home / "bundles" / ("0" * 64)
    old.mkdir(parents=True)
    (old / "model.safetensors").write_bytes(b"old")
    party.opens(bundle)
    party.joins()
    party.wait_for(lambda: "ready; waiting for rounds" in party.said)
    (kept,) = (party.home / "bundles").iterdir()
    assert (kept / MANIFEST).is_file()


@pytest.mark.parametrize(
    ("terms", "error"),
    [
        ({"adapters": ["blocks"]}, ConfigError),
        ({"chains": ["float32"]}, ConfigError),
        ({"max_epsilon": 8.0}, BudgetError),
    ],
)
def test_policy_refuses_before_anything_is_downloaded(
    party: Party, bundle: Path, terms: dict[str, Any], error: type[FedotError]
) -> None:
    party.opens(bundle)
    with pytest.raises(error):
        party.joined(**terms)
    assert not party.net.lines("released")
    assert party.reason() == _FAILURES[error]
    assert party.net.hub.board.present() == []


def test_too_large_a_budget_is_refused_without_a_number_for_the_server(
    party: Party, bundle: Path
) -> None:
    party.opens(bundle, privacy=PRIVATE)
    with pytest.raises(BudgetError, match="What would fit"):
        party.joined(max_epsilon=0.5)
    assert not party.net.lines("released")
    assert party.reason() == _FAILURES[BudgetError]


def test_no_reason_that_leaves_a_site_holds_a_number() -> None:
    assert set(_FAILURES) >= {BudgetError, ConfigError, WireError, ProtocolError, FedotError}
    assert not [text for text in _FAILURES.values() if re.search(r"\d", text)]


def test_rules_of_the_site_are_asked_with_what_the_run_would_do(
    party: Party, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Asked] = []

    def rules(asked: Asked) -> str:
        seen.append(asked)
        return "only on Sundays"

    monkeypatch.setattr("fedot.engines.open_site.load_hooks", lambda: {"rules": rules})
    party.opens(bundle, privacy=PRIVATE)
    with pytest.raises(ProtocolError, match="rules refused: only on Sundays"):
        party.joined(max_epsilon=8.0)
    assert not party.net.lines("released")
    assert party.reason() == "the site's own rules do not allow it"
    (asked,) = seen
    told = dict(asked.details)
    assert (asked.peer.name, asked.action) == ("a", "take_part")
    assert (told["run_id"], told["adapter"], told["rounds"]) == (RUN, "lora", "3")
    assert told["chain"] == "int8+deflate"
    assert 0 < float(told["epsilon"]) <= PRIVATE.target_epsilon
    with pytest.raises(ProtocolError, match="only on Sundays"):
        party.site(max_epsilon=8.0).look(party.said.append)


def test_look_says_hello_to_nobody_and_changes_nothing(party: Party, bundle: Path) -> None:
    party.opens(bundle, privacy=PRIVATE)
    card, offer = party.site(max_epsilon=8.0).look(party.said.append)
    assert (card.run_id, offer.max_epsilon) == (RUN, 8.0)
    assert offer.run_epsilon is not None
    assert offer.run_epsilon <= PRIVATE.target_epsilon
    assert not party.home.exists()
    assert (party.net.folder / "audit.jsonl").read_text() == ""
    assert party.net.hub.book.dataset_of("a") is None
    assert party.net.hub.board.present() == []


def test_site_leaves_for_good(party: Party, bundle: Path) -> None:
    party.opens(bundle)
    party.joins()
    party.wait_for(lambda: "ready; waiting for rounds" in party.said)
    assert "withdrew" in party.site().leave()
    party.wait_for(lambda: party.outcome)
    assert "withdrawn" in str(party.outcome[0])
    with pytest.raises(ProtocolError, match="nothing to leave"):
        party.site().leave()
    assert party.net.hub.book.withdrawn(RUN) == ["a"]


def test_site_that_comes_back_later_gets_the_current_state(party: Party, bundle: Path) -> None:
    party.opens(bundle)
    party.posts(1, bundle)
    first = party.joins()
    party.wait_for(lambda: party.net.hub.uploads.committed(RUN, 1))
    party.net.hub.board.close_run(RUN, "failed")
    first.join(PATIENCE_S)
    assert isinstance(party.outcome[0], ProtocolError)
    party.moved.clear()
    party.opens(bundle)
    party.posts(3, bundle)
    party.joins()
    party.wait_for(lambda: party.net.hub.uploads.committed(RUN, 3))
    stages = {stage for stage, _, _ in party.moved}
    assert "state of round 3" in stages
    # The bundle is there already.
    assert "get bundle" not in stages


def test_late_update_is_refused_with_a_clear_reason_and_the_site_stays(
    party: Party, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = party.progress

    def close_meanwhile(stage: str, done: int, total: int) -> None:
        progress(stage, done, total)
        if stage == "state of round 1" and done == total:
            party.net.hub.board.retract()

    monkeypatch.setattr(party, "progress", close_meanwhile)
    party.opens(bundle)
    party.posts(1, bundle)
    party.joins()
    party.wait_for(lambda: any(line.startswith("round 1 failed") for line in party.said))
    (line,) = [line for line in party.said if line.startswith("round 1 failed")]
    assert "it is closed, was given up" in line
    assert not party.net.hub.uploads.committed(RUN, 1)
    party.posts(2, bundle)
    party.wait_for(lambda: party.net.hub.uploads.committed(RUN, 2))


def test_owner_is_pinned_and_another_one_is_refused_later(
    party: Party, bundle: Path, tmp_path: Path
) -> None:
    party.opens(bundle)
    party.joins()
    party.wait_for(lambda: any(line.startswith("owner: ") for line in party.said))
    pinned = (party.home / "owner").read_text().strip()
    assert any(pinned in line for line in party.said)
    init_owner(tmp_path / "other", "Somebody", ["localhost"])
    asked = request_certificate("a", party.net.folder / "keys")
    kit = sign_request(tmp_path / "other", asked.csr_path, asked.fingerprint, "site", 90)
    write_durably(party.net.folder / "pki" / "a.kit.json", kit.read_bytes())
    with pytest.raises(ConfigError, match=f"this site knows the owner {pinned}"):
        party.site()


def test_renewed_kit_is_used_without_a_restart(party: Party, bundle: Path) -> None:
    party.opens(bundle)
    party.joins()
    party.wait_for(lambda: "ready; waiting for rounds" in party.said)
    pki = party.net.folder / "pki"
    before = read_kit(pki / "a.kit.json").fingerprint
    asked = request_certificate("a", party.net.folder / "keys")
    sign_request(pki, asked.csr_path, asked.fingerprint, "site", 30)
    party.posts(1, bundle)
    party.wait_for(lambda: party.net.hub.uploads.committed(RUN, 1))
    party.posts(2, bundle)
    party.wait_for(lambda: party.net.hub.uploads.committed(RUN, 2))
    used = [line["fingerprint"] for line in party.net.lines("received")]
    assert used[-1] == read_kit(pki / "a.kit.json").fingerprint != before


def test_certificate_that_has_ended_is_an_error_at_once(party: Party) -> None:
    asked = request_certificate("a", party.net.folder / "keys")
    then = datetime.now(UTC) - timedelta(days=40)
    party.net.hub.members.revoke("b")
    sign_request(party.net.folder / "pki", asked.csr_path, asked.fingerprint, "site", 30, now=then)
    with pytest.raises(ConfigError, match=r"ended 10 days ago\. Renew it"):
        party.site()


def test_home_has_one_site_at_work(party: Party, bundle: Path) -> None:
    party.opens(bundle)
    party.joins()
    party.wait_for(lambda: "ready; waiting for rounds" in party.said)
    with pytest.raises(ConfigError, match="another fedot join is at work"):
        party.joined()


def test_site_without_a_run_says_why_it_waits(party: Party, bundle: Path) -> None:
    party.net.hub.board.explain("job 7 is being prepared\x1b[2J")
    party.joins()
    party.wait_for(lambda: any("job 7 is being prepared" in line for line in party.said))
    party.opens(bundle)
    party.wait_for(lambda: "ready; waiting for rounds" in party.said)


def test_waiting_for_a_server_is_said_at_once_and_then_once_a_minute() -> None:
    now, said = [0.0], []
    waiting = Waiting("there:1", lambda: now[0])
    waiting.say = said.append
    waiting(OutOfStep("offsets"), 0)
    assert said == []
    waiting(TransportError("connection refused."), 1)
    assert said == ["waiting for there:1: connection refused. Trying again and again."]
    for _ in range(59):
        now[0] += 1
        waiting(PeerTimeout("nothing came."), 1)
    assert len(said) == 1
    now[0] += 1
    waiting(PeerTimeout("nothing came."), 1)
    assert len(said) == 2


def test_site_says_that_it_cannot_reach_its_server(party: Party) -> None:
    site = party.site()
    site.channel.close()
    away = open_site(
        "localhost:1",
        party.net.folder / "pki" / "a.kit.json",
        party.net.folder / "keys" / "a.key",
        party.home.with_name("policy.yaml"),
        party.records,
        party.home,
    )

    class Enough(Exception):
        pass

    def say(line: str) -> None:
        if line.startswith("waiting for localhost:1"):
            raise Enough

    with away, pytest.raises(Enough):
        away.take_part(party.progress, say)


def test_server_hears_of_hello_with_the_policys_data_set(party: Party, bundle: Path) -> None:
    party.opens(bundle)
    party.joins(dataset_id="notes-2026")
    # Until it is in the run, whose end then ends it too.
    party.wait_for(lambda: party.net.lines("released"))
    (line,) = party.net.lines("hello")
    assert line["facts"]["dataset_id"] == "notes-2026"
    fields = {field.name for field in pb.HelloRequest.DESCRIPTOR.fields}
    assert fields == {"protocol", "version", "dataset_id"}
