"""`fedot audit`, as its user would call it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedot.cli.app import main


def fedot(monkeypatch: pytest.MonkeyPatch, *args: str | Path) -> Any:
    monkeypatch.setattr(sys, "argv", ["fedot", *map(str, args)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_audits_a_config(
    tiny_config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config))
    out = tmp_path / "audit"
    few = ("--canaries", "40", "--references", "2", "--set", "privacy.unit=example")
    assert not fedot(monkeypatch, "audit", tmp_path / "config.yaml", "--out", out, *few)
    shown = capsys.readouterr().out
    for words in ("gradient canaries", "membership", "tokens"):
        assert words in shown
    # Before the work starts, and at the end.
    assert shown.index("! 40 canaries are too few") < shown.index("DP on")
    assert "could not have refuted the claim" in " ".join(shown.split())
    assert {path.name for path in out.iterdir()} == {"audit.json", "audit.html"}
    assert fedot(monkeypatch, "audit", tmp_path / "config.yaml", "--out", out) == 2
    assert "exists" in capsys.readouterr().err


def test_a_run_is_audited_as_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedot(monkeypatch, "audit", tmp_path, "--set", "seed=1") == 2
    assert "audited as it was made" in capsys.readouterr().err
    assert fedot(monkeypatch, "audit", tmp_path) == 2
    assert "holds no finished run" in capsys.readouterr().err
