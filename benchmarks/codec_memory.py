"""Peak memory of a large file's way through the codec: safetensors to payload to safetensors.

    python benchmarks/codec_memory.py --gb 4

Counts resident memory with all mapped pages, beyond what the process had before (Linux only).
Writes `benchmarks/results/codec_memory.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fedot.compression.codec import Step, decode_to_file, encode_file, plan, spec_of_file

RESULT = Path(__file__).with_name("results") / "codec_memory.json"
CHAIN = plan(Step("int8", {"min_step": 0.032}), Step("deflate"))
LIMIT_BYTES = 64e6


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def write_large(path: Path, num_bytes: int) -> None:
    """Sixteen tensors of normals, one after the other, so that they are never all in memory."""
    one = torch.randn(num_bytes // 64, generator=torch.Generator().manual_seed(0)) * 1e-3
    header = {
        f"w{n:02}": {
            "dtype": "F32",
            "shape": [one.numel()],
            "data_offsets": [n * one.nbytes, (n + 1) * one.nbytes],
        }
        for n in range(16)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number in range(16):
            file.write((one * (1 + number)).numpy().tobytes())


def child(folder: Path) -> dict[str, Any]:
    """In a process of its own: both ways, with the peak from before each."""
    source, payload, target = folder / "source", folder / "payload", folder / "target"
    row: dict[str, Any] = {"float32_bytes": source.stat().st_size}
    spec = spec_of_file(source)
    for way in ("encode", "decode"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        before, start = status_bytes("VmRSS"), time.perf_counter()
        if way == "encode":
            with payload.open("wb") as out:
                encode_file(out, source, CHAIN)
        else:
            with payload.open("rb") as incoming:
                decode_to_file(incoming, spec, [CHAIN], target)
        row[f"{way}_extra_bytes"] = status_bytes("VmHWM") - before
        row[f"{way}_seconds"] = time.perf_counter() - start
    return row | {"payload_bytes": payload.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_large(Path(name) / "source", int(options.gb * 1e9))
        command = [sys.executable, __file__, "--child", name]
        row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    marks = [
        {
            "name": f"{way}: extra bytes resident",
            "value": row[f"{way}_extra_bytes"],
            "at_most": LIMIT_BYTES,
            "holds": row[f"{way}_extra_bytes"] <= LIMIT_BYTES,
        }
        for way in ("encode", "decode")
    ]
    machine = {"cores": os.cpu_count(), "gpu": None}
    result = {"benchmark": "codec_memory", "machine": machine, "rows": [row], "marks": marks}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
