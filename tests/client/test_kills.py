"""SIGKILL at random, hundreds of times, on real processes that do real rounds.

What a killed process wrote is still in the page cache, so this shows the order of steps, not that
they are synced: that is `test_crashes.py`.
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
PHASES = ("reserve", "train", "store", "charge", "send")


def kill(folder: Path, num_kills: int, *plant: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), str(num_kills), "1", *plant],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_no_kill_under_counts_or_releases_twice(tmp_path: Path) -> None:
    done = kill(tmp_path, 210)
    assert done["broken"] == {}
    killed = done["kills"]
    assert sum(killed.values()) >= 200
    assert all(killed.get(phase, 0) >= 10 for phase in PHASES), killed
    assert done["trained"] > done["released"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("plant", ["forget", "charge-late"])
def test_planted_bugs_are_seen(tmp_path: Path, plant: str) -> None:
    """Pitfall 8: a restart that forgets what was spent; and a charge that comes after sending."""
    assert kill(tmp_path, 150, plant)["broken"]
