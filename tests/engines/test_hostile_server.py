"""A site's loop against a server that is hostile, or of another owner: real gRPC, real TLS."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from site_party import PRIVATE, Party, run_card
from whole_server import RUN, digest

from fedot.config import PayloadConfig, TrainingConfig
from fedot.emulator.manifest import FORMAT_VERSION, MANIFEST, signed_bytes
from fedot.engines.join import _FAILURES
from fedot.errors import (
    WireError,
)
from fedot.transport.identity import Signer, init_owner


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
    assert not party.home.with_name("policy.ledger.jsonl").exists()


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
    party.opens(fake_bundle(tmp_path / "fake", None, ["vocab.json"]))
    with pytest.raises(WireError, match="not signed"):
        party.joined()
    assert party.reason() == _FAILURES[WireError]


def test_bundle_of_another_key_is_refused(party: Party, tmp_path: Path) -> None:
    init_owner(tmp_path / "other", "Somebody", [])
    party.opens(fake_bundle(tmp_path / "fake", Signer(tmp_path / "other").sign, ["vocab.json"]))
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


def test_bundle_that_is_larger_than_was_said_is_not_downloaded(party: Party, bundle: Path) -> None:
    party.opens(bundle, bundle_bytes=1000)
    with pytest.raises(WireError, match="the run said 1000"):
        party.joined()
    assert not [path for path in party.home.rglob("*.safetensors*")]


def test_state_that_is_larger_than_the_adapter_is_not_downloaded(
    party: Party, bundle: Path
) -> None:
    party.opens(bundle)
    party.joins()
    party.posts(1, bundle, state_bytes=2**40)
    party.wait_for(lambda: any("round 1 failed" in line for line in party.said))
    assert "of this adapter it has at most" in party.said[-1]
    assert not list(party.home.glob("state*"))


def test_another_bundle_than_was_announced_is_refused(party: Party, tmp_path: Path) -> None:
    sign = Signer(party.net.folder / "pki").sign
    folder = fake_bundle(tmp_path / "fake", sign, ["vocab.json"])
    announced = digest(b"another")
    party.net.hub.shelf.put(announced, {path.name: path for path in folder.iterdir()})
    party.opens(bundle_digest=announced)
    with pytest.raises(WireError, match="digest that was announced"):
        party.joined()
    assert not [path for path in party.home.rglob("*.json") if path.is_file()]


def test_file_that_is_not_what_the_manifest_says_is_refused(party: Party, tmp_path: Path) -> None:
    sign = Signer(party.net.folder / "pki").sign
    folder = fake_bundle(tmp_path / "fake", sign, ["vocab.json"])
    (folder / "vocab.json").write_bytes(b"y")
    party.opens(folder)
    with pytest.raises(WireError, match=r"vocab\.json does not have the digest"):
        party.joined()
