"""A run's files as `fedot simulate` leaves them, with numbers that fit together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

CLIENTS = ("email", "asyncio", "unittest", "xml")

MakeRun = Callable[..., Path]


@pytest.fixture
def make_summary() -> Callable[..., dict[str, Any]]:
    return a_summary


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run's files; keywords change the summary."""

    def make(
        clients: Sequence[str] = CLIENTS,
        rounds: int = 6,
        unit: str = "example",
        metrics: list[dict[str, Any]] | None = None,
        config: str = "seed: 0\n",
        **changes: Any,
    ) -> Path:
        summary = a_summary(clients, unit, rounds=rounds, best_round=max(1, rounds - 1))
        if metrics is None:
            metrics = some_metrics(clients, rounds, unit)
        return write_run(tmp_path / "run", summary | changes, metrics, config)

    return make


def a_summary(
    clients: Sequence[str] = CLIENTS, unit: str = "example", **changes: Any
) -> dict[str, Any]:
    private = unit != "none"
    summary: dict[str, Any] = {
        "name": "demo",
        "fedot_version": "0.1.0",
        "quality": {
            "full_zero_shot": _quality(2.914),
            "full_tuned": _quality(2.642),
            "emulator_zero_shot": _quality(3.257),
            "emulator_tuned": _quality(2.811),
            "plug_in": _quality(2.691),
        },
        "recovery": 0.82,
        "plug_in_advantage": 0.12,
        "plug_in_advantage_se": 0.01,
        "leak_margin": -0.103,
        "leak_margin_se": 0.012,
        "plug_in_gain": 0.223,
        "plug_in_gain_se": 0.01,
        "general_gap": 0.31,
        "notes": {"simulation": "all clients ran in one process"},
        "privacy": {
            "unit": unit,
            "delta": 1e-5,
            "target_epsilon": 8.0,
            "epsilon": dict.fromkeys(clients, 7.981) if private else None,
            "noise_multiplier": dict.fromkeys(clients, 0.83) if private else None,
            "neighbouring": "add or remove one record",
        },
        "wire": {
            "float32_bytes": 1_000_000,
            "sent_bytes": 210_000,
            "received_bytes": 900_000,
            "bundle_bytes": 500_000,
            "bytes_after": {"float32": 1_000_000, "int8": 266_000, "deflate": 210_000},
        },
        "rounds": 6,
        "best_round": 5,
        "clients": len(clients),
        "failures": 0,
        "adapter": {"kind": "lora", "parameters": 12_000, "blocks": [0, 5]},
        "emulator": {
            "kept": [0, 1, 4, 5],
            "num_blocks": 6,
            "parameters": 200_000,
            "full_parameters": 300_000,
        },
        "seconds": {"emulator": 20.1, "rounds": 50.0, "evaluation": 60.0},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "seed": 0,
    }
    return summary | changes


def some_metrics(clients: Sequence[str], rounds: int, unit: str) -> list[dict[str, Any]]:
    return [_metrics(number, clients, rounds, unit) for number in range(rounds + 1)]


def write_run(
    folder: Path, summary: dict[str, Any], metrics: list[dict[str, Any]], config: str
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    lines = "".join(json.dumps(line) + "\n" for line in metrics)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    return folder


def _quality(loss: float) -> dict[str, Any]:
    perplexity = math.exp(loss)
    return {
        "loss": loss,
        "loss_se": 0.011,
        "perplexity": perplexity,
        "tokens": 40_000,
        "records": 400,
    }


def _metrics(number: int, clients: Sequence[str], rounds: int, unit: str) -> dict[str, Any]:
    gained = 1 - math.exp(-number / 2)
    spent = 7.981 * math.sqrt(number / rounds)
    return {
        "round": number,
        "cohort": list(clients) if number else [],
        "failed": {},
        "loss": {
            "proxy": 3.05 - 0.03 * gained,
            "emulator": 3.257 - 0.45 * gained,
            "plug_in": 2.914 - 0.225 * gained,
        },
        "sent_bytes": 35_000 * bool(number),
        "received_bytes": 150_000 * bool(number),
        "float32_bytes": 166_000 * bool(number),
        "bytes_after": {"float32": 166_000, "int8": 44_000, "deflate": 35_000} if number else {},
        "epsilon": dict.fromkeys(clients, spent) if number and unit != "none" else {},
        "update_norm": 0.4,
        "learning_rate": 0.003,
        "seconds": 8.1,
    }
