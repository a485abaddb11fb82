"""`fedot pki`, as owner and sites use it: folders apart, only files and fingerprints travel."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedot.cli.app import main
from fedot.transport.identity import (
    init_owner,
    read_kit,
    renew_owner,
    request_certificate,
    sign_request,
)
from fedot.transport.members import Members

Fedot = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedot:
    """`fedot("pki", ...)`: exit code, output, errors."""

    def call(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedot", "pki", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    folder = tmp_path / "owner"
    init_owner(folder, "Owner", [])
    return folder


def said(out: str, what: str) -> str:
    found = re.search(rf"^{what}: (.*)$", out, re.MULTILINE)
    assert found, out
    return found[1]


def members(owner: Path) -> Members:
    return Members(owner / "members.json")


def test_from_nothing_to_a_kit_that_a_site_can_use(fedot: Fedot, tmp_path: Path) -> None:
    owner, site = tmp_path / "owner", tmp_path / "site"
    code, out, _ = fedot("init", "--dir", owner, "--organisation", "X", "--host", "fl.example.org")
    assert code == 0
    who = said(out, "owner")
    code, out, _ = fedot("request", "--site", "hospital-a", "--dir", site)
    assert code == 0
    assert {path.name for path in site.iterdir()} == {"hospital-a.key", "hospital-a.csr"}
    sent = shutil.copy(said(out, "request"), tmp_path / "mail.csr")
    told = said(out, "fingerprint")
    code, out, err = fedot("sign", sent, "--fingerprint", told, "--dir", owner, "--days", "30")
    assert code == 0, err
    assert said(out, "owner") == who
    kit = shutil.copy(said(out, "kit"), site)
    assert read_kit(Path(kit)).days_left(datetime.now(UTC)) == pytest.approx(30, abs=0.01)
    read_kit(Path(kit)).channel_credentials(site / "hospital-a.key")
    code, out, _ = fedot("show", kit)
    assert said(out, "owner") == who
    assert "hospital-a (site)" in out
    assert "PRIVATE" not in Path(kit).read_text()


def test_nothing_is_signed_without_the_fingerprint_that_the_site_reads(
    fedot: Fedot, owner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = request_certificate("hospital-a", tmp_path / "site")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, _, err = fedot("sign", made.csr_path, "--dir", owner)
    assert code == 2
    assert "--fingerprint" in err
    wrong = made.fingerprint[:-1] + ("0" if made.fingerprint[-1] != "0" else "1")
    code, _, err = fedot("sign", made.csr_path, "--fingerprint", wrong, "--dir", owner)
    assert code == 2
    assert "fingerprint" in err
    assert members(owner).sites() == []


class Terminal(io.StringIO):
    """A person at a keyboard."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "signed"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_at_a_terminal_the_owner_confirms_what_was_read_aloud(
    fedot: Fedot,
    owner: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    signed: bool,
) -> None:
    made = request_certificate("hospital-a", tmp_path / "site")
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, out, _ = fedot("sign", made.csr_path, "--dir", owner, "--role", "observer")
    assert (code == 0) == signed
    assert made.fingerprint in out
    assert [m.name for m in members(owner).valid() if m.role == "observer"] == (
        ["hospital-a"] if signed else []
    )


@pytest.mark.parametrize("wrong", [("--days", "91"), ("--days", "0"), ("--role", "king")])
def test_more_than_ninety_days_and_unknown_roles_are_refused(
    fedot: Fedot, owner: Path, tmp_path: Path, wrong: tuple[str, str]
) -> None:
    made = request_certificate("hospital-a", tmp_path / "site")
    told = ("--fingerprint", made.fingerprint, "--dir", str(owner))
    assert fedot("sign", made.csr_path, *told, *wrong)[0] == 2
    assert members(owner).sites() == []


def test_revoking_says_what_ended_and_how_to_come_back(
    fedot: Fedot, owner: Path, tmp_path: Path
) -> None:
    made = request_certificate("hospital-a", tmp_path / "site")
    kit = read_kit(sign_request(owner, made.csr_path, made.fingerprint, "site"))
    code, out, _ = fedot("revoke", "hospital-a", "--dir", owner)
    assert code == 0
    assert said(out, "revoked") == kit.fingerprint
    assert members(owner).is_revoked(kit.fingerprint)
    code, _, err = fedot("revoke", "hospital-a", "--dir", owner)
    assert code == 2
    assert "no certificate to revoke" in err


def test_show_lists_everybody_and_warns_before_an_end(
    fedot: Fedot, owner: Path, tmp_path: Path
) -> None:
    for site, days in (("soon", 5), ("long", 60), ("gone", 60)):
        made = request_certificate(site, tmp_path / "site")
        sign_request(owner, made.csr_path, made.fingerprint, "site", days)
    members(owner).revoke("gone")
    code, out, _ = fedot("show", "--dir", owner)
    assert code == 0
    rows = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if line.split()}
    assert rows["long"] == ["site", "60"]
    assert rows["gone"] == ["site", "revoked"]
    assert rows["owner"] == ["owner", "90"]
    assert [line for line in out.splitlines() if line.startswith("!")] == [
        "! soon has under 14 days left: fedot pki request, there."
    ]


def test_a_renewed_site_is_not_warned_about(fedot: Fedot, owner: Path, tmp_path: Path) -> None:
    for days in (60, 5):
        made = request_certificate("hospital-a", tmp_path / "site")
        sign_request(owner, made.csr_path, made.fingerprint, "site", days)
    assert "!" not in fedot("show", "--dir", owner)[1]


def test_renewing_adds_a_host_and_takes_the_warning_away(fedot: Fedot, tmp_path: Path) -> None:
    owner = tmp_path / "owner"
    init_owner(owner, "Owner", [])
    renew_owner(owner, now=datetime.now(UTC) - timedelta(days=360))
    assert "! Renew it" in fedot("show", "--dir", owner)[1]
    before = (owner / "server.pem").read_bytes()
    code, out, _ = fedot("renew", "--dir", owner, "--host", "fl.example.org")
    assert code == 0
    assert "days left" in out
    assert (owner / "server.pem").read_bytes() != before
    assert "! Renew it" not in fedot("show", "--dir", owner)[1]


def test_a_foreign_certificate_is_admitted_by_its_fingerprint(
    fedot: Fedot, owner: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    init_owner(theirs, "Hospital B", [])
    made = request_certificate("hospital-b", tmp_path / "site")
    kit = read_kit(sign_request(theirs, made.csr_path, made.fingerprint, "site"))
    certificate = tmp_path / "hospital-b.crt"
    certificate.write_text(kit.certificate)
    ca = ("--ca", theirs / "ca.crt", "--dir", owner)
    code, _, err = fedot("admit", certificate, "--fingerprint", "0" * 64, *ca)
    assert code == 2
    assert "fingerprint" in err
    assert members(owner).sites() == []
    # As openssl prints it.
    told = ":".join(re.findall("..", kit.fingerprint.upper()))
    code, out, err = fedot("admit", certificate, "--fingerprint", told, *ca)
    assert code == 0, err
    assert members(owner).sites() == ["hospital-b"]
    assert (owner / "trusted.crt").read_text().endswith((theirs / "ca.crt").read_text())
    assert read_kit(Path(said(out, "kit"))).owner == read_kit(owner / "owner.kit.json").owner


def test_an_own_certificate_of_the_server_is_installed_and_kept(
    fedot: Fedot, owner: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    init_owner(theirs, "Our own CA", ["fl.example.org"])
    key, mark, chain = (theirs / "server.pem").read_text().partition("-----BEGIN CERTIFICATE-----")
    (tmp_path / "key.pem").write_text(key)
    (tmp_path / "chain.pem").write_text(mark + chain)
    own = (tmp_path / "chain.pem", "--key", tmp_path / "key.pem", "--ca", theirs / "ca.crt")
    assert fedot("install", *own, "--dir", owner)[0] == 0
    installed = (owner / "server.pem").read_bytes()
    code, _, err = fedot("renew", "--dir", owner, "--host", "x.example.org")
    assert code == 2
    assert "another CA" in err
    assert fedot("renew", "--dir", owner)[0] == 0
    assert (owner / "server.pem").read_bytes() == installed
    assert (
        json.loads((owner / "owner.kit.json").read_text())["ca"] == (theirs / "ca.crt").read_text()
    )


@pytest.mark.parametrize(
    "args",
    [
        ("show",),
        ("revoke", "a"),
        ("renew",),
        ("sign", "none.csr", "--fingerprint", "0"),
        ("admit", "none.crt"),
        ("show", "none.kit.json"),
        ("request", "--site", "../a"),
    ],
)
def test_what_is_not_there_is_one_line_of_error(
    fedot: Fedot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[Any, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = fedot(*args)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "internal" not in err
    assert not list(tmp_path.iterdir())


def test_an_owners_folder_is_never_made_twice(fedot: Fedot, owner: Path) -> None:
    before = (owner / "ca.key").read_bytes()
    code, _, err = fedot("init", "--dir", owner)
    assert code == 2
    assert "already" in err
    assert (owner / "ca.key").read_bytes() == before


def test_half_a_fingerprint_is_not_called_tampering(
    fedot: Fedot, owner: Path, tmp_path: Path
) -> None:
    made = request_certificate("hospital-a", tmp_path / "site")
    for told, digits in ((made.fingerprint[:9], 8), (f"{made.fingerprint[:4]}-...-9f45", 8)):
        code, _, err = fedot("sign", made.csr_path, "--fingerprint", told, "--dir", owner)
        assert code == 2
        assert f"--fingerprint has {digits} hex digits" in err
        assert "64 hex digits" in err
        assert "changed" not in err
    code, _, err = fedot("sign", made.csr_path, "--fingerprint", "0" * 64, "--dir", owner)
    assert code == 2
    assert "somebody may have changed the file" in err
    assert members(owner).sites() == []
