"""Certificates that end soon are said in time, and once a day."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedot.federation.expiry import daily, ending_soon
from fedot.transport.identity import init_owner, request_certificate, sign_request
from fedot.transport.members import Members

NOW = datetime.now(UTC)


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    init_owner(tmp_path / "pki", "Owner", [], NOW)
    for name, days in (("soon", 10), ("later", 40)):
        asked = request_certificate(name, tmp_path / "keys")
        sign_request(tmp_path / "pki", asked.csr_path, asked.fingerprint, "site", days, NOW)
    return tmp_path / "pki"


def warned(pki: Path, in_days: float) -> list[str]:
    return ending_soon(pki, Members(pki / "members.json"), NOW + timedelta(days=in_days))


def test_only_what_ends_in_a_few_days_is_warned_of(pki: Path) -> None:
    (line,) = warned(pki, 0)
    assert line == "! the certificate of soon ends in 10 days: fedot pki request, there"
    assert [line.split()[4] for line in warned(pki, 30)] == ["later"]


def test_server_and_owner_are_told_how_to_renew(pki: Path) -> None:
    (owner,) = warned(pki, 85)
    assert owner == "! the certificate of owner ends in 5 days: fedot pki renew"
    (server,) = warned(pki, 360)
    assert server == "! the server's certificate ends in 5 days: fedot pki renew"


def test_renewed_site_is_not_warned_of(pki: Path, tmp_path: Path) -> None:
    asked = request_certificate("soon", tmp_path / "keys")
    sign_request(pki, asked.csr_path, asked.fingerprint, "site", 60, NOW)
    assert warned(pki, 0) == []


def test_damaged_folder_is_a_warning_and_no_end(pki: Path) -> None:
    (pki / "server.pem").unlink()
    (line,) = warned(pki, 0)
    assert "server.pem" in line


def test_it_is_looked_at_again_and_again_until_the_end() -> None:
    times, thrice = [], threading.Event()

    def look() -> None:
        times.append(1)
        if len(times) >= 3:
            thrice.set()

    with daily(look, every_s=0.01):
        assert thrice.wait(30)
    num_times = len(times)
    assert not [each for each in threading.enumerate() if each.name == "fedot-daily"]
    assert len(times) == num_times
