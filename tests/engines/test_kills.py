"""SIGKILL at random on a server and its sites, real processes over real TLS, in every phase.

What a killed process wrote is still in the page cache, so this shows the order of steps, not that
they are synced: that is what the tests of transfers, journal and outbox do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("kill_driver.py")
PHASES = ("download", "train", "store", "upload", "aggregate", "commit", "broadcast")


def drive(folder: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder / "kills"), *options],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_run_finishes_as_if_nobody_had_been_killed(tmp_path: Path) -> None:
    """Without DP the same bits; with DP what the stored payloads give, each charged once."""
    done = drive(tmp_path, "--kills", "56", "--each", "5")
    assert done["broken"] == {}, done
    assert done["finished"] == done["begun"] >= 2
    assert sum(done["kills"].values()) >= 50
    assert all(done["kills"].get(phase, 0) >= 5 for phase in PHASES), done["kills"]
    # Otherwise nothing was shown of either.
    assert done["witnessed"]["stored_bytes_sent_again"] >= 1
    assert done["witnessed"]["rounds_gone_on_with"] >= 1


@pytest.mark.slow
def test_planted_bugs_are_seen(tmp_path: Path) -> None:
    """Each by the promise that it breaks, not by a crash."""
    seen = drive(tmp_path, "--plants")["seen"]
    assert "an update was sent again that had been acknowledged" in seen["acknowledge-early"]
    assert "a round trained although its update was stored" in seen["forget-outbox"]
    assert "an update reached the server and was not charged" in seen["charge-late"]
    assert set(seen["forget-received"]) & {
        "an update was asked for again that the journal had",
        "an update was sent again that had been acknowledged",
    }
