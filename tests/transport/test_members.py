"""The owner's list: whom it lets in, and that nothing damaged lets in anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedot.errors import ConfigError, ProtocolError
from fedot.journal import write_durably
from fedot.transport.certificates import client_certificate, fingerprint_of, new_authority, new_key
from fedot.transport.members import Members

NOW = datetime.now(UTC)
KEY = new_key()
CA_KEY = new_key()
CA = new_authority(CA_KEY, "Owner", NOW)


def certificate(name: str, days: float = 30, key=None, now: datetime = NOW) -> bytes:
    return client_certificate((CA, CA_KEY), (key or new_key()).public_key(), name, now, days)


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members.create(tmp_path / "members.json")


def test_an_admitted_certificate_is_its_owners(members: Members) -> None:
    pem = certificate("a")
    members.add(pem, "observer", NOW)
    peer = members.peer_of(pem, NOW)
    assert (peer.name, peer.role, peer.fingerprint) == ("a", "observer", fingerprint_of(pem))
    assert not members.is_revoked(peer.fingerprint)


def test_a_certificate_that_nobody_admitted_is_unknown_even_under_an_admitted_name(
    members: Members,
) -> None:
    members.add(certificate("a"), "site", NOW)
    with pytest.raises(ProtocolError, match="not admitted"):
        members.peer_of(certificate("a"), NOW)
    assert members.is_revoked("0" * 64)
    with pytest.raises(ProtocolError, match="cannot be read"):
        members.peer_of(b"nothing", NOW)


def test_expiry_is_asked_at_every_call(members: Members) -> None:
    pem = certificate("a", days=30)
    members.add(pem, "site", NOW)
    members.peer_of(pem, NOW + timedelta(days=29, hours=23))
    for when in (timedelta(days=30), timedelta(days=31), -timedelta(hours=2)):
        with pytest.raises(ProtocolError, match="not now"):
            members.peer_of(pem, NOW + when)


def test_revoking_a_name_ends_all_its_certificates_and_nobody_elses(members: Members) -> None:
    old, new, other = certificate("a", key=KEY), certificate("a", key=KEY), certificate("b")
    for pem in (old, new, other):
        members.add(pem, "site", NOW)
    assert members.revoke("a") == [fingerprint_of(old), fingerprint_of(new)]
    for pem in (old, new):
        assert members.is_revoked(fingerprint_of(pem))
        with pytest.raises(ProtocolError, match="revoked"):
            members.peer_of(pem, NOW)
    assert members.peer_of(other, NOW).name == "b"
    assert members.sites(NOW) == ["b"]
    for name in ("a", "nobody"):
        with pytest.raises(ConfigError, match="no certificate to revoke"):
            members.revoke(name)


def test_a_name_in_use_takes_no_other_key_and_no_other_role(members: Members) -> None:
    members.add(certificate("a", days=30, key=KEY), "site", NOW)
    with pytest.raises(ConfigError, match="another key"):
        members.add(certificate("a"), "site", NOW)
    with pytest.raises(ConfigError, match="cannot be observer"):
        members.add(certificate("a", key=KEY), "observer", NOW)
    members.add(certificate("a", key=KEY), "site", NOW)
    assert len(members.valid(NOW)) == 2
    # When the old ones have ended the name is free for another key.
    later = NOW + timedelta(days=31)
    members.add(certificate("a", now=later), "site", later)


def test_a_revoked_key_never_comes_back(members: Members) -> None:
    members.add(certificate("a", key=KEY), "site", NOW)
    members.revoke("a")
    with pytest.raises(ConfigError, match="new one"):
        members.add(certificate("a", key=KEY), "site", NOW)
    with pytest.raises(ConfigError, match="new one"):
        members.add(certificate("b", key=KEY), "site", NOW)
    members.add(certificate("a"), "site", NOW)
    assert members.sites(NOW) == ["a"]


def test_admitting_again_changes_nothing(members: Members, tmp_path: Path) -> None:
    pem = certificate("a")
    members.add(pem, "site", NOW)
    before = (tmp_path / "members.json").read_bytes()
    members.add(pem, "site", NOW)
    assert (tmp_path / "members.json").read_bytes() == before


def test_only_sites_with_a_valid_certificate_are_sites(members: Members) -> None:
    members.add(certificate("ended", days=1), "site", NOW)
    members.add(certificate("watcher"), "observer", NOW)
    for name in ("b", "a"):
        members.add(certificate(name), "site", NOW)
    assert members.sites(NOW + timedelta(days=2)) == ["a", "b"]


def test_what_another_process_changes_is_seen_at_the_next_call(
    members: Members, tmp_path: Path
) -> None:
    pem = certificate("a")
    other = Members(tmp_path / "members.json")
    other.add(pem, "site", NOW)
    assert members.peer_of(pem, NOW).name == "a"
    other.revoke("a")
    with pytest.raises(ProtocolError, match="revoked"):
        members.peer_of(pem, NOW)


def a_member(**changes: object) -> dict[str, object]:
    good = {
        "fingerprint": "0" * 64,
        "name": "a",
        "role": "site",
        "key": "-".join(["0000"] * 16),
        "admitted": NOW.isoformat(),
        "ends": NOW.isoformat(),
        "revoked": None,
    }
    return good | changes


DAMAGED = [
    b"",
    b"{}garbage",
    b"[]",
    b'{"format": "fedot-members-2", "members": []}',
    *(
        json.dumps({"format": "fedot-members-1", "members": listed}).encode()
        for listed in (
            [a_member(role="king")],
            [a_member(fingerprint="ff")],
            [a_member(ends="2026-01-01T00:00:00")],
            [a_member(more=1)],
            [a_member(), a_member()],
            {"all": "everybody"},
        )
    ),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_list_lets_nobody_in_until_it_is_whole_again(
    members: Members, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "members.json"
    pem = certificate("a")
    members.add(pem, "site", NOW)
    good = path.read_bytes()
    write_durably(path, content)
    for _ in range(2):
        with pytest.raises(ConfigError):
            members.peer_of(pem, NOW)
        with pytest.raises(ConfigError):
            members.is_revoked(fingerprint_of(pem))
    with pytest.raises(ConfigError):
        members.add(certificate("b"), "site", NOW)
    assert path.read_bytes() == content
    write_durably(path, good)
    assert members.peer_of(pem, NOW).name == "a"


def test_a_list_cut_off_anywhere_is_damaged(members: Members, tmp_path: Path) -> None:
    members.add(certificate("a"), "site", NOW)
    path = tmp_path / "members.json"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError):
            Members(path)


def test_a_missing_list_lets_nobody_in(members: Members, tmp_path: Path) -> None:
    pem = certificate("a")
    members.add(pem, "site", NOW)
    members.peer_of(pem, NOW)
    (tmp_path / "members.json").unlink()
    with pytest.raises(ConfigError, match="nobody is let in"):
        members.peer_of(pem, NOW)
    with pytest.raises(ConfigError, match="nobody is let in"):
        Members(tmp_path / "members.json")


ADMIT = """
import sys
from datetime import datetime
from pathlib import Path
from fedot.transport.members import Members
path, now, *certificates = sys.argv[1:]
for certificate in certificates:
    Members(Path(path)).add(Path(certificate).read_bytes(), "site", datetime.fromisoformat(now))
"""


def test_changes_from_several_processes_all_last(members: Members, tmp_path: Path) -> None:
    path = tmp_path / "members.json"
    processes = []
    for which in "pqr":
        files = [tmp_path / f"{which}{n}.crt" for n in range(5)]
        for file in files:
            file.write_bytes(certificate(file.stem))
        command = [sys.executable, "-c", ADMIT, str(path), NOW.isoformat(), *map(str, files)]
        processes.append(subprocess.Popen(command))
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert members.sites(NOW) == sorted(f"{which}{n}" for which in "pqr" for n in range(5))


def test_threads_may_ask_while_the_list_changes(members: Members) -> None:
    pems = [certificate(f"s{n}") for n in range(4)]
    for pem in pems:
        members.add(pem, "site", NOW)
    errors: list[BaseException] = []

    def ask(pem: bytes) -> None:
        try:
            for _ in range(100):
                members.peer_of(pem, NOW)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(pem,)) for pem in pems]
    for thread in threads:
        thread.start()
    for n in range(5):
        members.add(certificate(f"new{n}"), "site", NOW)
    for thread in threads:
        thread.join()
    assert not errors
    assert len(members.sites(NOW)) == 9


def test_strangers_certificates_do_not_pile_up(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedot.transport.members._MOST_KEPT", 3)
    pem = certificate("a")
    members.add(pem, "site", NOW)
    for n in range(10):
        with pytest.raises(ProtocolError):
            members.peer_of(certificate(f"x{n}"), NOW)
        assert members.peer_of(pem, NOW).name == "a"
    assert len(members._shown) <= 3


def test_the_lock_beside_the_list_is_the_owners_alone(members: Members, tmp_path: Path) -> None:
    members.add(certificate("a"), "site", NOW)
    assert os.stat(tmp_path / ".members.json.lock").st_mode & 0o077 == 0
