"""Verbs about jobs that need no server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedot.cli.app import main
from fedot.transport.audit_log import AuditLog, check_log


def checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["fedot", "job", "check-log", str(path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), " ".join((shown.out + shown.err).split())


def test_an_audit_log_is_checked_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        for event in ("started", "stopped"):
            log.record(event)
    code, said = checked(monkeypatch, capsys, path)
    assert (code, said.split(",")[0]) == (0, "2 lines")
    assert check_log(path).last in said
    path.write_text(path.read_text().replace("started", "stopped"))
    code, said = checked(monkeypatch, capsys, path)
    assert code == 2
    assert "line 1 of" in said
