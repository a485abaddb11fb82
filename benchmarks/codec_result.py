"""What both codec benchmarks write: rows and marks, with machine, versions and commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PACKAGES = ("torch", "numpy", "isal", "zlib-ng", "zstandard", "bitsandbytes", "safetensors")


def mark(name: str, value: float, bound: str, limit: float) -> Row:
    """A figure beside its bound, `at_least` or `at_most`."""
    holds = value >= limit if bound == "at_least" else value <= limit
    return {"name": name, "value": round(value, 4), bound: limit, "holds": holds}


def machine() -> Row:
    """The processor, and how busy it is; call it before the work."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    load = round(os.getloadavg()[0], 2)
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": None, "load_before": load}


def write(name: str, about: Row, rows: list[Row], marks: list[Row]) -> None:
    """Show the marks and write `benchmarks/results/NAME.json`."""
    for one in marks:
        limit = f">= {one['at_least']:g}" if "at_least" in one else f"<= {one['at_most']:g}"
        line = f"{'holds' if one['holds'] else 'FAILS'}  {one['name']}: {one['value']:g} ({limit})"
        if "floor" in one:
            line += (
                f"; this machine allows {one['floor']:.2f}, so it is {one['of_floor']:.0%} of that"
            )
        print(line)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    result = {
        "benchmark": name,
        "machine": about,
        "versions": {package: version(package) for package in PACKAGES},
        "commit": commit.strip(),
        "rows": rows,
        "marks": marks,
    }
    path = Path(__file__).with_name("results") / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
