"""The metrics endpoint over real HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest

from fedot.errors import ConfigError
from fedot.transport.certificates import client_certificate, new_authority, new_key
from fedot.transport.members import Members
from fedot.transport.metrics import REFUSALS, Telemetry

NOW = datetime.now(UTC)


class Health:
    """What the endpoint is told."""

    def __init__(self) -> None:
        self.well = True
        self.error: ConfigError | None = None

    def __call__(self) -> tuple[bool, dict[str, str | int]]:
        if self.error:
            raise self.error
        return self.well, {"state": "running", "round": 3}


@pytest.fixture
def members(tmp_path: Path) -> Members:
    members = Members.create(tmp_path / "members.json")
    key, ca_key = new_key(), new_key()
    authority = (new_authority(ca_key, "Owner", NOW), ca_key)
    for name, days in (("hospital-a", 30), ("hospital-a", 60), ("hospital-b", 10)):
        with_key = key if name == "hospital-a" else new_key()
        pem = client_certificate(authority, with_key.public_key(), name, NOW, days)
        members.add(pem, "site", NOW)
    return members


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def telemetry(members: Members, health: Health) -> Iterator[Telemetry]:
    with Telemetry(members, health) as telemetry:
        yield telemetry


def get(telemetry: Telemetry, path: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", telemetry.port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def values(telemetry: Telemetry) -> dict[str, float]:
    status, text = get(telemetry, "/metrics")
    assert status == 200
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows if "_created" not in name}


def test_what_is_counted_is_shown(telemetry: Telemetry) -> None:
    telemetry.received("hospital-a", 100)
    telemetry.received("hospital-a", 50)
    telemetry.sent("hospital-b", 7)
    telemetry.uploaded("hospital-a")
    telemetry.downloaded("hospital-b")
    telemetry.refused("role")
    telemetry.rounds(4, present=2, late=1)
    shown = values(telemetry)
    assert shown['fedot_received_bytes_total{site="hospital-a"}'] == 150
    assert shown['fedot_sent_bytes_total{site="hospital-b"}'] == 7
    assert shown['fedot_uploads_total{site="hospital-a"}'] == 1
    assert shown['fedot_downloads_total{site="hospital-b"}'] == 1
    assert shown['fedot_refused_calls_total{reason="role"}'] == 1
    assert (shown["fedot_round"], shown["fedot_sites_present"]) == (4, 2)
    assert shown["fedot_sites_late"] == 1


def test_made_up_sites_and_reasons_add_no_series(telemetry: Telemetry) -> None:
    for n in range(50):
        telemetry.received(f"made-up-{n}", 1)
        telemetry.refused(f"because {n}")
    shown = values(telemetry)
    assert shown['fedot_received_bytes_total{site="other"}'] == 50
    assert shown['fedot_refused_calls_total{reason="other"}'] == 50
    assert not [name for name in shown if "made-up" in name or "because" in name]
    assert "other" in REFUSALS


def test_days_left_are_those_of_a_sites_last_certificate(
    telemetry: Telemetry, members: Members
) -> None:
    shown = values(telemetry)
    assert shown['fedot_certificate_days_left{site="hospital-a"}'] == pytest.approx(60, abs=0.1)
    assert shown['fedot_certificate_days_left{site="hospital-b"}'] == pytest.approx(10, abs=0.1)
    members.revoke("hospital-b")
    assert 'fedot_certificate_days_left{site="hospital-b"}' not in values(telemetry)


def test_health_says_what_the_server_says(telemetry: Telemetry, health: Health) -> None:
    status, text = get(telemetry, "/healthz")
    assert (status, json.loads(text)) == (200, {"state": "running", "round": 3})
    health.well = False
    assert get(telemetry, "/healthz")[0] == 503
    health.error = ConfigError("the list is damaged")
    status, text = get(telemetry, "/healthz")
    assert (status, json.loads(text)) == (503, {"error": "the list is damaged"})


def test_a_damaged_list_of_members_does_not_take_the_endpoint_down(
    telemetry: Telemetry, tmp_path: Path
) -> None:
    (tmp_path / "members.json").write_text("{")
    assert get(telemetry, "/metrics")[0] == 503
    assert get(telemetry, "/healthz")[0] == 200


def test_other_paths_are_not_there(telemetry: Telemetry) -> None:
    for path in ("/", "/etc/passwd", "/metrics/..", "/healthz2"):
        assert get(telemetry, path)[0] == 404


def test_one_who_connects_and_says_nothing_blocks_nobody(telemetry: Telemetry) -> None:
    with socket.create_connection(("127.0.0.1", telemetry.port)):
        assert get(telemetry, "/healthz")[0] == 200


def test_two_servers_in_a_process_count_apart(telemetry: Telemetry, members: Members) -> None:
    with Telemetry(members, Health()) as other:
        other.uploaded("hospital-a")
        assert values(other)['fedot_uploads_total{site="hospital-a"}'] == 1
        assert 'fedot_uploads_total{site="hospital-a"}' not in values(telemetry)


def test_a_closed_endpoint_answers_nobody(members: Members) -> None:
    telemetry = Telemetry(members, Health())
    telemetry.close()
    with pytest.raises(ConnectionRefusedError):
        get(telemetry, "/healthz")
