"""A site's loop against a real server over TLS: friendly, hostile, away, or of another owner."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from whole_server import RUN, Net, digest, make_pki, running

from fedot.cards import ResultCard, RunCard, TaskCard
from fedot.client.chains import state_chain
from fedot.compression.codec import encode
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.emulator.bundle import write_bundle, write_signature
from fedot.emulator.manifest import FORMAT_VERSION, MANIFEST, bundle_digest, signed_bytes
from fedot.engines.join import _FAILURES
from fedot.engines.open_site import OpenSite, open_site
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
from fedot.models.adapters import AdapterSpec, attach
from fedot.models.anatomy import load_model, shallower
from fedot.transport import fedot_pb2 as pb
from fedot.transport.authorize import Asked
from fedot.transport.errors import OutOfStep
from fedot.transport.identity import Signer, init_owner, request_certificate, sign_request
from fedot.transport.notices import Posted

PATIENCE_S = 60.0
KEPT = (0, 2, 3)
SPEC = AdapterSpec("lora", (0, 3), 2, 4.0, ("model.layers.0.mlp.up_proj",))
PRIVATE = PrivacyConfig(unit="example", target_epsilon=4.0)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_pki(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(
    checkpoint: Path, tiny_tokenizer: Any, keys: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A signed bundle; not to be changed."""
    emulator = shallower(load_model(str(checkpoint)), KEPT)
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    write_bundle(folder, emulator, tiny_tokenizer, KEPT, SPEC, {})
    write_signature(folder, Signer(keys / "pki").sign)
    return folder


class Party:
    """A server whose owner does as the test says, and a site in this process."""

    def __init__(self, net: Net, home: Path, records: Path) -> None:
        self.net, self.home, self.records = net, home, records
        self.said: list[str] = []
        self.moved: list[tuple[str, int, int]] = []
        self.outcome: list[str | FedotError] = []
        self._threads: list[threading.Thread] = []
        self._sites: list[OpenSite] = []

    def site(self, **terms: Any) -> OpenSite:
        policy = {"dataset_id": "data-a", "max_epsilon": None, "delta": 1e-5} | terms
        path = self.home.with_name("policy.yaml")
        path.write_text(yaml.safe_dump(policy))
        site = open_site(
            self.net.where,
            self.net.folder / "pki" / "a.kit.json",
            self.net.folder / "keys" / "a.key",
            path,
            self.records,
            self.home,
            device="cpu",
        )
        self._sites.append(site)
        return site

    def joined(self, **terms: Any) -> str:
        """Take part until it is over."""
        return self.site(**terms).take_part(self.progress, self.said.append)

    def joins(self, **terms: Any) -> threading.Thread:
        """The same in a thread of its own."""

        def take_part() -> None:
            try:
                self.outcome.append(self.joined(**terms))
            except FedotError as error:
                self.outcome.append(error)

        thread = threading.Thread(target=take_part)
        self._threads.append(thread)
        thread.start()
        return thread

    def progress(self, stage: str, done: int, total: int) -> None:
        self.moved.append((stage, done, total))

    def wait_for(self, what: Callable[[], object]) -> None:
        waiting = threading.Event()
        for _ in range(int(PATIENCE_S / 0.02)):
            if what():
                return
            waiting.wait(0.02)
        raise AssertionError(f"it did not come to that; said: {self.said}, {self.outcome}")

    def close(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        for site in self._sites:
            site.__exit__(None, None, None)

    def opens(self, bundle: Path | None = None, card: str | None = None, **changes: Any) -> None:
        """Open a run whose bundle is offered file by file."""
        named = digest(b"nothing")
        if bundle is not None:
            named = bundle_digest(bundle)
            self.net.hub.shelf.put(named, {path.name: path for path in bundle.iterdir()})
        changes = {"bundle_digest": named} | changes
        self.net.hub.board.open_run(
            RUN, changes["bundle_digest"], {"a": card or run_card(**changes).model_dump_json()}
        )

    def posts(self, round: int, bundle: Path, **changes: Any) -> TaskCard:
        """Ask a round of the site."""
        from fedot.emulator.bundle import read_bundle

        read = read_bundle(bundle)
        adapter = attach(read.load("float32"), read.adapter, read.layer_map)
        state = encode(adapter.state(), state_chain(PayloadConfig())).payload
        path = self.net.folder / f"state-{round}"
        path.write_bytes(state)
        self.net.hub.shelf.put(digest(state), {"state": path})
        card = task_card(round, state, **changes)
        cards = {"a": card.model_dump_json()}
        self.net.hub.board.post(Posted(RUN, round, digest(state), cards))
        return card

    def reason(self) -> str:
        """What the server heard of the site's failure."""
        return next(p.reason for p in self.net.hub.board.presences() if p.site == "a")


def run_card(**changes: Any) -> RunCard:
    raw = {
        "run_id": RUN,
        "name": "a run",
        "bundle_bytes": 1,
        "adapter": "lora",
        "adapter_parameters": 100,
        "dtype": "float32",
        "text_field": "text",
        "max_tokens": 32,
        "held_out_ratio": 0.2,
        "rounds": 3,
        "planned_rounds": 3,
        "training": TrainingConfig(steps_per_round=2, batch_size=4),
        "privacy": PrivacyConfig(unit="none"),
        "payload": PayloadConfig(),
        "seed": 7,
    }
    return RunCard.model_validate(raw | changes)


def task_card(round: int, state: bytes, **changes: Any) -> TaskCard:
    run = run_card(bundle_digest="0" * 64)
    raw = {
        "run_id": RUN,
        "round": round,
        "state_digest": digest(state),
        "state_bytes": len(state),
        "learning_rate": 0.01,
        "training": run.training,
        "privacy": run.privacy,
        "payload": run.payload,
        "planned_rounds": 3,
        "seed": 7,
        "trains": "all",
        "state_part": "all",
    }
    return TaskCard.model_validate(raw | changes)


@pytest.fixture
def party(keys: Path, tmp_path: Path, records_file: Callable[..., Path]) -> Iterator[Party]:
    folder = Path(shutil.copytree(keys, tmp_path / "server"))
    with running(folder) as net:
        party = Party(net, tmp_path / "site", records_file())
        try:
            yield party
        finally:
            net.hub.board.close_run(RUN, "done")
            party.close()


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


@pytest.mark.parametrize("run_id", ["../../outside", "/etc", "a/b", "", "x" * 65, "a\n"])
def test_run_id_that_leads_elsewhere_is_refused(party: Party, tmp_path: Path, run_id: str) -> None:
    before = {path for path in tmp_path.rglob("*") if "site" not in path.parts}
    card = run_card(bundle_digest="0" * 64).model_dump_json()
    party.opens(card=card.replace(json.dumps(RUN), json.dumps(run_id)))
    with pytest.raises(WireError, match="run_id"):
        party.joined()
    assert sorted(path.name for path in party.home.iterdir()) == [".join", "owner"]
    assert before <= set(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"planned_rounds": 30},
        {"training": TrainingConfig(steps_per_round=1000, batch_size=4)},
        {"privacy": PRIVATE},
        {"payload": PayloadConfig(chain="float32")},
        {"run_id": "another"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_round_of_another_run_than_was_agreed_on_is_refused(
    party: Party, bundle: Path, changes: dict[str, Any]
) -> None:
    party.opens(bundle)
    party.posts(1, bundle, **changes)
    party.joins()
    party.wait_for(lambda: party.outcome)
    assert isinstance(party.outcome[0], WireError)
    assert "not of the run that was agreed on" in str(party.outcome[0])
    assert not party.net.hub.uploads.committed(RUN, 1)
    assert not (party.home / "ledger.jsonl").exists()


def fake_bundle(folder: Path, sign: Callable[[bytes], bytes] | None, names: Sequence[str]) -> Path:
    """A bundle whose files hold nothing."""
    folder.mkdir()
    for name in names:
        if "/" not in name:
            (folder / name).write_bytes(b"x")
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "files": dict.fromkeys(names, digest(b"x")),
        "signature": None,
    }
    if sign is not None:
        manifest["signature"] = sign(signed_bytes(manifest)).hex()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_unsigned_bundle_is_refused(party: Party, tmp_path: Path) -> None:
    party.opens(fake_bundle(tmp_path / "fake", None, ["a.json"]))
    with pytest.raises(WireError, match="not signed"):
        party.joined()
    assert party.reason() == _FAILURES[WireError]


def test_bundle_of_another_key_is_refused(party: Party, tmp_path: Path) -> None:
    init_owner(tmp_path / "other", "Somebody", [])
    party.opens(fake_bundle(tmp_path / "fake", Signer(tmp_path / "other").sign, ["a.json"]))
    with pytest.raises(WireError, match="not the model owner's"):
        party.joined()
    # Nothing but the manifest was asked for.
    (part,) = (party.home / "bundles").iterdir()
    assert [path.name for path in part.iterdir()] == [MANIFEST]


@pytest.mark.parametrize("name", ["../owner.json", "/tmp/x.json", "a.pkl", "a\0.json", MANIFEST])
def test_signed_manifest_cannot_name_what_leads_outside(
    party: Party, tmp_path: Path, name: str
) -> None:
    sign = Signer(party.net.folder / "pki").sign
    folder = fake_bundle(tmp_path / "fake", sign, [])
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION, "files": {name: digest(b"x")}, "signature": None
    }  # fmt: skip
    manifest["signature"] = sign(signed_bytes(manifest)).hex()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    party.opens(folder)
    with pytest.raises(WireError, match="no kind of file"):
        party.joined()


def test_another_bundle_than_was_announced_is_refused(party: Party, tmp_path: Path) -> None:
    sign = Signer(party.net.folder / "pki").sign
    folder = fake_bundle(tmp_path / "fake", sign, ["a.json"])
    announced = digest(b"another")
    party.net.hub.shelf.put(announced, {path.name: path for path in folder.iterdir()})
    party.opens(bundle_digest=announced)
    with pytest.raises(WireError, match="digest that was announced"):
        party.joined()
    assert not [path for path in party.home.rglob("*.json") if path.is_file()]


def test_file_that_is_not_what_the_manifest_says_is_refused(party: Party, tmp_path: Path) -> None:
    sign = Signer(party.net.folder / "pki").sign
    folder = fake_bundle(tmp_path / "fake", sign, ["a.json"])
    (folder / "a.json").write_bytes(b"y")
    party.opens(folder)
    with pytest.raises(WireError, match=r"a\.json does not have the digest"):
        party.joined()


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
    asked = request_certificate("a", party.net.folder / "keys")
    sign_request(pki, asked.csr_path, asked.fingerprint, "site", 30)
    party.posts(1, bundle)
    party.wait_for(lambda: party.net.hub.uploads.committed(RUN, 1))
    party.posts(2, bundle)
    party.wait_for(lambda: party.net.hub.uploads.committed(RUN, 2))
    used = [line["fingerprint"] for line in party.net.lines("received")]
    assert used[0] != used[-1]


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
    party.wait_for(lambda: party.net.lines("hello"))
    (line,) = party.net.lines("hello")
    assert line["facts"]["dataset_id"] == "notes-2026"
    fields = {field.name for field in pb.HelloRequest.DESCRIPTOR.fields}
    assert fields == {"protocol", "version", "dataset_id"}
