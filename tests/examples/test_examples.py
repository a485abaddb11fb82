"""The examples run as they stand, with less work in them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedot.config import load_config
from fedot.federation.run import simulate

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
LESS = [
    "training.steps_per_round=2",
    "federation.rounds=2",
    "evaluation.ceiling_epochs=1",
    "evaluation.max_records=40",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs beside the data that prepare.py makes."""
    folder = tmp_path_factory.mktemp("examples")
    for config in EXAMPLES.glob("*.yaml"):
        shutil.copy(config, folder)
    subprocess.run(
        [sys.executable, EXAMPLES / "prepare.py", folder / "data", "20"],
        check=True,
        cwd=EXAMPLES.parent,
    )
    return folder


def test_every_config_is_tested() -> None:
    found = {path.name for path in EXAMPLES.glob("*.yaml")}
    assert found == {"offsite_tuning.yaml", "federated_sft.yaml"}


def test_offsite_tuning(folder: Path, tmp_path: Path) -> None:
    config = load_config(folder / "offsite_tuning.yaml", [*LESS, "emulator.distill_steps=10"])
    summary = simulate(config, tmp_path / "run")
    assert 0 < max(summary["privacy"]["epsilon"].values()) <= 8
    assert summary["emulator"]["kept"] == [0, 1, 3, 4, 5]


def test_federated_sft(folder: Path, tmp_path: Path) -> None:
    summary = simulate(load_config(folder / "federated_sft.yaml", LESS), tmp_path / "run")
    assert summary["emulator"] is None
    assert summary["adapter"]["blocks"] == [0, 1, 2, 3, 4, 5]
    assert summary["plug_in_gain"] > 0
