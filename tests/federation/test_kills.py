"""SIGKILL between any two steps of the server: the resumed run makes the same bits."""

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


def kill(config: dict[str, Any], folder: Path, num_kills: int, *plant: str) -> dict[str, Any]:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(path), str(folder), str(num_kills), *plant],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def config(tiny_config: dict[str, Any]) -> dict[str, Any]:
    """Everything that a server remembers: Adam's moments, its noise, a clipping norm that moves."""
    return tiny_config | {
        "training": {"steps_per_round": 1, "batch_size": 8},
        "privacy": {"unit": "both", "client_level": {"adaptive": True}},
        "federation": {"rounds": 2, "quorum": 2, "server_optimizer": "adam"},
        "evaluation": {"ceiling_learning_rates": []},
    }


@pytest.mark.slow
def test_killed_server_makes_the_bits_that_an_undisturbed_one_makes(
    config: dict[str, Any], tmp_path: Path
) -> None:
    done = kill(config, tmp_path, 16)
    assert done["broken"] == {}
    assert sum(done["kills"].values()) == 16
    assert len(done["kills"]) >= 4, "of 14 kinds of moments"


@pytest.mark.slow
def test_planted_bug_is_seen(config: dict[str, Any], tmp_path: Path) -> None:
    """A restart that forgets who had answered: somebody who was late then counts after all."""
    assert kill(config, tmp_path, 6, "unsettled")["broken"]
