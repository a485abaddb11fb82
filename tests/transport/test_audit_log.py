"""The audit log: whole lines, in order, that nobody changes unseen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fedot.errors import ConfigError
from fedot.transport.audit_log import UNSYNCED, AuditLog, check_log
from fedot.transport.members import Peer

PEER = Peer("hospital-a", "site", "ab" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_did_what_when(path: Path) -> None:
    with AuditLog(path) as log:
        log.record("released", PEER, run="r1", digest="cd" * 32, bytes=12)
        log.record("started")
    first, second = lines(path)
    assert first["time"].endswith("+00:00")
    assert (first["number"], first["event"], first["peer"]) == (1, "released", "hospital-a")
    assert first["fingerprint"] == PEER.fingerprint
    assert first["facts"] == {"run": "r1", "digest": "cd" * 32, "bytes": 12}
    assert (second["number"], second["peer"]) == (2, None)
    assert check_log(path).lines == 2
    assert path.stat().st_mode & 0o077 == 0


def test_a_log_goes_on_where_it_ended(path: Path) -> None:
    for _ in range(3):
        with AuditLog(path) as log:
            log.record("started")
            log.record("stopped")
    assert [line["number"] for line in lines(path)] == [1, 2, 3, 4, 5, 6]
    assert check_log(path).last == lines(path)[-1]["hash"]


def a_log(path: Path) -> list[bytes]:
    with AuditLog(path) as log:
        for n in range(6):
            log.record("received", PEER, round=n, bytes=100 + n)
    return path.read_bytes().splitlines(keepends=True)


def test_every_changed_byte_is_seen(path: Path) -> None:
    whole = b"".join(a_log(path))
    newlines = {place for place, byte in enumerate(whole) if byte == ord("\n")}
    for place in range(0, len(whole) - 1, 3):
        if place in newlines:
            continue
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="not what was written"):
            check_log(path)


def test_a_removed_doubled_moved_or_added_line_is_seen(path: Path) -> None:
    good = a_log(path)
    forged = good[2].replace(b'"round": 2', b'"round": 9')
    assert forged != good[2]
    for wrong in (
        good[1:],
        good[:2] + good[3:],
        [*good[:3], good[2], *good[3:]],
        [good[1], good[0], *good[2:]],
        [*good[:2], forged, *good[3:]],
        [*good, forged],
    ):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(ConfigError, match="not what was written"):
            check_log(path)


def test_a_cut_end_shows_as_another_last_hash(path: Path) -> None:
    good = a_log(path)
    before = check_log(path)
    path.write_bytes(b"".join(good[:-1]))
    assert check_log(path) != before


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_is_mended_and_said(path: Path, left: int) -> None:
    good = a_log(path)
    path.write_bytes(b"".join(good[:-1]) + good[-1][:left])
    assert check_log(path).lines == 5
    with AuditLog(path) as log:
        log.record("started")
    assert check_log(path).lines == 7
    assert [line["event"] for line in lines(path)[-2:]] == ["mended", "started"]
    assert lines(path)[-2]["facts"]["torn_bytes"] == len(good[-1][:left])


def test_a_log_that_was_torn_in_its_first_line_starts_anew(path: Path) -> None:
    path.write_bytes(b'{"number": 1, "ti')
    with AuditLog(path):
        assert [line["event"] for line in lines(path)] == ["mended"]
    assert check_log(path).lines == 1


def test_a_damaged_last_line_is_not_written_after(path: Path) -> None:
    path.write_bytes(b"".join(a_log(path)) + b"garbage\n")
    with pytest.raises(ConfigError, match="damaged"):
        AuditLog(path)


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\nb", 'x"}\n{"number": 9', "\x1b[2J", "\u2028", "\x00", "\ud800", "é"]
)
def test_no_text_of_a_peer_makes_a_second_line_or_moves_a_cursor(path: Path, text: str) -> None:
    with AuditLog(path) as log:
        log.record("refused", Peer(text, "site", text), reason=text, **{text: text})
    raw = path.read_bytes()
    assert raw.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in raw[:-1])
    (line,) = lines(path)
    assert line["peer"] == line["facts"][text] == line["facts"]["reason"] == text
    assert check_log(path).lines == 1


def test_facts_stay_short(path: Path) -> None:
    with AuditLog(path) as log:
        log.record("refused", reason="x" * 10**6)
    assert path.stat().st_size < 1000


def test_only_one_server_writes_a_log(path: Path) -> None:
    with AuditLog(path), pytest.raises(ConfigError, match="another server"):
        AuditLog(path)
    AuditLog(path).close()


def test_threads_lines_are_whole_and_in_order(path: Path) -> None:
    with AuditLog(path) as log:

        def write(which: int) -> None:
            for n in range(25):
                log.record("hello", Peer(f"site-{which}", "site", "0" * 64), n=n)

        threads = [threading.Thread(target=write, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert check_log(path).lines == 100
    for which in range(4):
        mine = [x["facts"]["n"] for x in lines(path) if x["peer"] == f"site-{which}"]
        assert mine == list(range(25))


def test_what_releases_or_refuses_is_synced_before_it_is_done(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(path)
    sizes: list[int] = []
    real = os.fsync

    def watch(file: int) -> None:
        real(file)
        sizes.append(path.stat().st_size)

    monkeypatch.setattr(os, "fsync", watch)
    for event in ("released", "refused", "received", "submitted", "aborted", "fetched"):
        log.record(event, PEER)  # type: ignore[arg-type]
        assert sizes[-1] == path.stat().st_size
    assert len(sizes) == 6
    for event in UNSYNCED:
        log.record(event, PEER)
    assert len(sizes) == 6
    log.close()


FULL = """
import resource, signal, sys
from pathlib import Path
from fedot.transport.audit_log import AuditLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
log = AuditLog(path)
log.record("started")
size = path.stat().st_size
# Room for a part of the next line: as on a disk that is full.
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
try:
    log.record("released")
except OSError as error:
    print("refused", error.errno)
print(path.stat().st_size == size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.record("stopped")
"""


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_behind(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.split() == ["refused", "27", "True"]
    assert [line["event"] for line in lines(path)] == ["started", "stopped"]
    assert check_log(path).lines == 2


WRITING = """
import sys
from pathlib import Path
from fedot.transport.audit_log import AuditLog
log = AuditLog(Path(sys.argv[1]))
while True:
    log.record("released", round=1)
    print(flush=True)
"""


def test_a_killed_server_loses_no_line_that_was_acted_upon(path: Path) -> None:
    acted = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITING, str(path)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        ) as process:
            assert process.stdout is not None
            for _ in range(20):
                assert process.stdout.readline()
                acted += 1
            process.send_signal(signal.SIGKILL)
    assert check_log(path).lines >= acted
