"""What every benchmark writes: `benchmarks/results/NAME.json` (docs/design.md, section 7)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


def mark(name: str, value: float, bound: str, limit: float) -> Row:
    """One target and whether it holds; `bound` is `at_least` or `at_most`."""
    holds = value >= limit if bound == "at_least" else value <= limit
    return {"name": name, "value": value, bound: limit, "holds": bool(holds)}


def machine() -> Row:
    """Processor, cores and GPU."""
    import torch

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "gpu": gpu}


def write(benchmark: str, rows: list[Row], marks: list[Row], packages: Iterable[str]) -> Path:
    """Write the results; a mark that does not hold stays in and says so."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    content = {
        "benchmark": benchmark,
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "commit": commit,
        "rows": rows,
        "marks": marks,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
