"""Size, error and speed of the payload codec, beside what others do with the same tensors.

    python benchmarks/codec_inputs.py runs/codec-inputs
    python benchmarks/codec.py runs/codec-inputs --peers .venv-peers/bin/python

Sizes and errors are those of real updates and of a large synthetic set with their statistics;
speeds are those of the synthetic set, in bytes of float32, medians over the repeats on one thread.
Writes `benchmarks/results/codec.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from isal import igzip_lib, isal_zlib
from torch import Tensor

from fedot.compression.codec import Chain, Step, decode, encode, plan, spec_of, text_of

RESULT = Path(__file__).with_name("results") / "codec.json"
DEFLATE = Step("deflate")
TOP_K = Step("top_k", {"keep_ratio": 0.1})
CHAINS = {
    "float32": plan(Step("float32")),
    "bfloat16": plan(Step("bfloat16")),
    "bfloat16+planes+deflate": plan(Step("bfloat16"), Step("planes"), DEFLATE),
    "float16+planes+deflate": plan(Step("float16"), Step("planes"), DEFLATE),
    "int8": plan(Step("int8")),
    "int8+deflate": plan(Step("int8"), DEFLATE),
    "int8 min_step+deflate": plan(Step("int8", {"min_step": 0.032}), DEFLATE),
    "int8/4096+deflate": plan(Step("int8", {"block": 4096}), DEFLATE),
    "int8 stochastic+deflate": plan(Step("int8", {"rounding": "stochastic"}), DEFLATE),
    "int8+zstd": plan(Step("int8"), Step("zstd")),
    "nf4+deflate": plan(Step("nf4"), DEFLATE),
    "top_k+int8 min_step+deflate": plan(TOP_K, Step("int8", {"min_step": 0.032}), DEFLATE),
    "top_k+int8+deflate": plan(TOP_K, Step("int8"), DEFLATE),
}
Row = dict[str, Any]
Tensors = dict[str, Tensor]


def synthetic(real: Tensors, num_values: int) -> Tensors:
    """A large set with the statistics of a real update, and no repeats that it does not have.

    Every row of 256 values is a random row of the real update, shuffled, with random signs.
    """
    rng = np.random.default_rng(0)
    flat = torch.cat([tensor.flatten() for tensor in real.values()]).float().numpy()
    rows = flat[: flat.size // 256 * 256].reshape(-1, 256)
    result: Tensors = {}
    for number in range(num_values // 2**20):
        some = rng.permuted(rows[rng.integers(0, len(rows), 4096)], axis=1)
        signs = rng.integers(0, 2, some.shape, dtype=np.int8) * 2 - 1
        result[f"tensor {number}"] = torch.from_numpy((some * signs).astype(np.float32))
    return result


def speeds(work: Callable[[], Any], num_bytes: int, repeats: int) -> tuple[float, list[float]]:
    """Median GB/s, and the slowest and fastest, after one run to warm up."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(num_bytes / 1e9 / (time.perf_counter() - start))
    return statistics.median(found), [min(found), max(found)]


def size_and_error(name: str, chain: Chain, tensors: Tensors) -> Row:
    payload = encode(tensors, chain, seed=0).payload
    received = decode(payload, spec_of(tensors), [chain])
    lost = sum(float((received[n].double() - t).square().sum()) for n, t in tensors.items())
    total = sum(float(t.double().square().sum()) for t in tensors.values())
    num_bytes = 4 * sum(t.numel() for t in tensors.values())
    return {
        "chain": name,
        "text": text_of(chain),
        "float32_bytes": num_bytes,
        "size_ratio": len(payload) / num_bytes,
        "relative_l2_error": (lost / total) ** 0.5,
    }


def with_speeds(row: Row, chain: Chain, tensors: Tensors, repeats: int, workers: int) -> Row:
    num_bytes, spec = row["float32_bytes"], spec_of(tensors)
    payload = encode(tensors, chain, seed=0).payload
    for key, work in {
        "encode": lambda: encode(tensors, chain, seed=0, workers=workers),
        "decode": lambda: decode(payload, spec, [chain], workers=workers),
    }.items():
        row[f"{key}_gb_per_s"], row[f"{key}_spread"] = speeds(work, num_bytes, repeats)
    return row | {"workers": workers}


def floor(tensors: Tensors, repeats: int) -> Row:
    """The least int8 + DEFLATE can take: the library's own time, and reading the tensors once."""
    tensor = next(iter(tensors.values())).flatten()[:262_144]
    chain, target = CHAINS["int8"], torch.empty_like(tensor)
    codes = encode({"w": tensor}, chain).payload[-tensor.numel() :]
    packed = igzip_lib.compress(codes, 1, igzip_lib.COMP_DEFLATE)
    everything = torch.cat([t.flatten() for t in tensors.values()][:64])
    copy = torch.empty_like(everything)
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "isal deflate": (lambda: igzip_lib.compress(codes, 1, igzip_lib.COMP_DEFLATE), 4),
        "isal inflate": (lambda: isal_zlib.decompressobj(-15).decompress(packed, len(codes)), 4),
        "frame copy": (lambda: target.copy_(tensor), 1),
        "memory copy": (lambda: copy.copy_(everything), 1),
    }
    sizes = {"memory copy": everything.nbytes, "frame copy": tensor.nbytes}
    row: Row = {"chain": "floor"}
    for name, (work, widening) in works.items():
        num_bytes = sizes.get(name, len(codes) * widening)
        row[f"{name} gb_per_s"] = speeds(work, num_bytes, 4 * repeats)[0]
    return row


def peers(python: str, tensors: Tensors, repeats: int) -> list[Row]:
    """Measure the peers in their own environment, on the first 64 MB of the same tensors."""
    script = Path(__file__).with_name("codec_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensors.safetensors"
        safetensors.torch.save_file(dict(list(tensors.items())[:16]), path)
        command = [python, str(script), str(path), str(repeats)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    rows: list[Row] = json.loads(done.stdout.strip().splitlines()[-1])
    return [{"input": "synthetic, 64 MB at most", **row} for row in rows]


def mark(name: str, value: float, bound: str, limit: float) -> Row:
    holds = value >= limit if bound == "at_least" else value <= limit
    return {"name": name, "value": round(value, 4), bound: limit, "holds": holds}


def marks(rows: list[Row]) -> list[Row]:
    def find(column: str, **keys: Any) -> float:
        return float(next(r[column] for r in rows if all(r.get(k) == v for k, v in keys.items())))

    int8: Row = {"input": "synthetic", "chain": "int8+deflate"}
    one, two = int8 | {"workers": 1}, int8 | {"workers": 2}
    found = [
        mark("int8 encode GB/s per core", find("encode_gb_per_s", **one), "at_least", 1.0),
        mark("int8 decode GB/s per core", find("decode_gb_per_s", **one), "at_least", 1.0),
        *(
            mark(
                f"two cores over one, int8 {way}",
                find(f"{way}_gb_per_s", **two) / find(f"{way}_gb_per_s", **one),
                *("at_least", 1.7),
            )
            for way in ("encode", "decode")
        ),
    ]
    for scheme in {r["scheme"] for r in rows if "AdaQuant" in r.get("scheme", "")}:
        ratio = find("encode_gb_per_s", **one) / find("encode_gb_per_s", scheme=scheme)
        found.append(mark("int8 encode over NVFlare's CPU 8-bit scheme", ratio, "at_least", 20.0))
    limits = {"bfloat16+planes+deflate": 0.37, "int8+deflate": 0.23, "top_k+int8+deflate": 0.05}
    for source in dict.fromkeys(r["input"] for r in rows if "size_ratio" in r and "chain" in r):
        for chain, limit in limits.items():
            ratio = find("size_ratio", input=source, chain=chain)
            found.append(mark(f"{chain} over float32, {source}", ratio, "at_most", limit))
    return found


def machine() -> Row:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": None, "load_before": os.getloadavg()[0]}


def show(rows: list[Row], found: list[Row]) -> None:
    print(f"{'input':26} {'chain or scheme':34} {'x fp32':>7} {'L2 error':>9}  encode  decode GB/s")
    for row in rows:
        if "size_ratio" not in row:
            print({key: round(v, 2) if isinstance(v, float) else v for key, v in row.items()})
            continue
        way = "".join(
            f"{row.get(f'{w}_gb_per_s', float('nan')):8.2f}" for w in ("encode", "decode")
        )
        label = row.get("chain") or row["scheme"]
        label += f" x{row['workers']}" if row.get("workers", 1) > 1 else ""
        ratio, error = row["size_ratio"], row["relative_l2_error"]
        print(f"{row['input']:26} {label:34} {ratio:7.4f} {error:9.5f}{way}")
    for one in found:
        limit = f">= {one['at_least']}" if "at_least" in one else f"<= {one['at_most']}"
        print(f"{'holds' if one['holds'] else 'FAILS'}  {one['name']}: {one['value']} ({limit})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", type=Path, help="folder that codec_inputs.py wrote")
    parser.add_argument("--synthetic-mb", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", help="python of the environment that has the peers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = machine()
    real = {p.stem: safetensors.torch.load_file(p) for p in sorted(options.inputs.glob("*"))}
    rows: list[Row] = [
        {"input": source, **size_and_error(name, chain, tensors)}
        for source, tensors in real.items()
        for name, chain in CHAINS.items()
    ]
    large = synthetic(real["lora-plain"], options.synthetic_mb * 2**18)
    for name, chain in CHAINS.items():
        row = {"input": "synthetic", **size_and_error(name, chain, large)}
        for workers in (1, 2) if name == "int8+deflate" else (1,):
            rows.append(with_speeds(dict(row), chain, large, options.repeats, workers))
    rows.append(floor(large, options.repeats))
    if options.peers:
        rows += peers(options.peers, large, options.repeats)
    found = marks(rows)
    show(rows, found)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    packages = ("torch", "numpy", "isal", "zlib-ng", "zstandard", "bitsandbytes")
    result = {
        "benchmark": "codec",
        "machine": about,
        "versions": {name: version(name) for name in packages},
        "commit": commit.strip(),
        "rows": rows,
        "marks": found,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
