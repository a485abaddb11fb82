"""Size, error and speed of the payload codec, beside what others do with the same tensors.

    python benchmarks/codec_inputs.py runs/codec-inputs
    python benchmarks/codec.py runs/codec-inputs --peers .venv-peers/bin/python

Sizes and errors are those of real updates and of a large synthetic set with their statistics;
speeds are those of the synthetic set, in bytes of float32, medians over the repeats. "Per core" is
per second of processor time on one thread, which a busy machine changes little; the gain from a
second core needs a quiet one. Writes `benchmarks/results/codec.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from codec_result import Row, machine, mark, write
from isal import igzip_lib, isal_zlib
from torch import Tensor

from fedot.compression.codec import Chain, Step, decode, encode, plan, spec_of, text_of

DEFLATE = Step("deflate")
TOP_K = Step("top_k", {"keep_ratio": 0.1})
CHAINS = {
    "float32": plan(Step("float32")),
    "bfloat16": plan(Step("bfloat16")),
    "bfloat16+planes+deflate": plan(Step("bfloat16"), Step("planes"), DEFLATE),
    "float16+planes+deflate": plan(Step("float16"), Step("planes"), DEFLATE),
    "int8": plan(Step("int8")),
    "int8+deflate": plan(Step("int8"), DEFLATE),
    "int8 absmax+deflate": plan(Step("int8", {"min_step": 0}), DEFLATE),
    "int8 absmax/4096+deflate": plan(Step("int8", {"block": 4096, "min_step": 0}), DEFLATE),
    "int8 stochastic+deflate": plan(Step("int8", {"rounding": "stochastic"}), DEFLATE),
    "int8+zstd": plan(Step("int8"), Step("zstd")),
    "nf4+deflate": plan(Step("nf4"), DEFLATE),
    "top_k+int8+deflate": plan(TOP_K, Step("int8"), DEFLATE),
}
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


def speeds(work: Callable[[], Any], num_bytes: int, repeats: int, way: str) -> Row:
    """Median GB/s with the slowest and fastest, and per second of processor time; one warm-up."""
    work()
    wall, processor = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        work()
        wall.append(num_bytes / 1e9 / (time.perf_counter() - start))
        processor.append(num_bytes / 1e9 / (time.process_time() - used))
    return {
        f"{way}_gb_per_s": statistics.median(wall),
        f"{way}_spread": [min(wall), max(wall)],
        f"{way}_gb_per_core_s": statistics.median(processor),
    }


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
        row |= speeds(work, num_bytes, repeats, key)
    return row | {"workers": workers}


def floor(tensors: Tensors, repeats: int) -> Row:
    """What the floor of int8 + DEFLATE is computed from: isal alone, a copy, and two threads."""
    tensor = next(iter(tensors.values())).flatten()[:262_144]
    codes = encode({"w": tensor}, CHAINS["int8"]).payload[-tensor.numel() :]
    packed = igzip_lib.compress(codes, 1, igzip_lib.COMP_DEFLATE)
    everything = torch.cat([t.flatten() for t in tensors.values()])
    copy = torch.empty_like(everything)
    row: Row = {"chain": "floor"}
    # A code of one byte stands for a float32 of four.
    for way, work, num_bytes in (
        ("isal_deflate", lambda: igzip_lib.compress(codes, 1, igzip_lib.COMP_DEFLATE), 2**20),
        ("isal_inflate", lambda: isal_zlib.decompressobj(-15).decompress(packed, 2**18), 2**20),
        ("memory_copy", lambda: copy.copy_(everything), everything.nbytes),
    ):
        row |= speeds(work, num_bytes, 4 * repeats, way)
        gains = [gain_of_two_threads(work, 1 if way == "memory_copy" else 500) for _ in range(3)]
        row[f"{way}_two_threads"] = statistics.median(gains)
    return row


def gain_of_two_threads(work: Callable[[], Any], times: int) -> float:
    """Twice the work on two threads over once the work on one: what this machine's cores allow."""

    def some() -> None:
        for _ in range(times):
            work()

    start = time.perf_counter()
    some()
    alone = time.perf_counter() - start
    with ThreadPoolExecutor(2) as pool:
        start = time.perf_counter()
        for done in [pool.submit(some), pool.submit(some)]:
            done.result()
        return 2 * alone / (time.perf_counter() - start)


def with_floor(one: Row, limit: float) -> Row:
    """A missed mark beside the best that this machine's memory and DEFLATE library allow."""
    if one["holds"]:
        return one
    return one | {"floor": round(limit, 4), "of_floor": round(one["value"] / limit, 4)}


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
    return [{"input": "synthetic, <= 64 MB", **row} for row in rows]


def marks(rows: list[Row]) -> list[Row]:
    def find(column: str, **keys: Any) -> float:
        return float(next(r[column] for r in rows if all(r.get(k) == v for k, v in keys.items())))

    int8: Row = {"input": "synthetic", "chain": "int8+deflate"}
    one, two = int8 | {"workers": 1}, int8 | {"workers": 2}
    found = []
    # A copy reads and writes every byte; the codec reads or writes float32 once, and what is sent.
    moved = (1 + find("size_ratio", **one)) / (2 * find("memory_copy_gb_per_core_s", chain="floor"))
    best = {}
    for way, library in (("encode", "isal_deflate"), ("decode", "isal_inflate")):
        per_core = find(f"{way}_gb_per_core_s", **one)
        gain = find(f"{way}_gb_per_s", **two) / find(f"{way}_gb_per_s", **one)
        best[way] = 1 / (1 / find(f"{library}_gb_per_core_s", chain="floor") + moved)
        speed = mark(f"int8 {way} GB/s per core", per_core, "at_least", 1.0)
        scaling = mark(f"int8 {way}, two cores over one", gain, "at_least", 1.7)
        found.append(with_floor(speed, best[way]))
        found.append(with_floor(scaling, find(f"{library}_two_threads", chain="floor")))
    for scheme in {r["scheme"] for r in rows if "AdaQuant" in r.get("scheme", "")}:
        peer = find("encode_gb_per_core_s", scheme=scheme)
        ratio = find("encode_gb_per_core_s", **one) / peer
        one_mark = mark("int8 encode over NVFlare's CPU 8-bit scheme", ratio, "at_least", 20.0)
        found.append(with_floor(one_mark, best["encode"] / peer))
    limits = {"bfloat16+planes+deflate": 0.37, "int8+deflate": 0.23, "top_k+int8+deflate": 0.05}
    for source in dict.fromkeys(r["input"] for r in rows if "chain" in r and "size_ratio" in r):
        for chain, limit in limits.items():
            ratio = find("size_ratio", input=source, chain=chain)
            found.append(mark(f"{chain} over float32, {source}", ratio, "at_most", limit))
    return found


def show(rows: list[Row]) -> None:
    print(f"{'input':24} {'chain or scheme':33} {'x fp32':>7} {'L2 error':>9}  GB/s per core")
    for row in rows:
        if "size_ratio" not in row:
            print({key: round(v, 2) for key, v in row.items() if isinstance(v, float)})
            continue
        label = row.get("chain") or row["scheme"]
        label += f" x{row['workers']}" if row.get("workers", 1) > 1 else ""
        line = f"{row['input']:24} {label:33} {row['size_ratio']:7.4f}"
        line += f" {row['relative_l2_error']:9.5f}"
        for way in ("encode", "decode"):
            if f"{way}_gb_per_core_s" in row:
                line += f"{row[f'{way}_gb_per_core_s']:8.2f}"
        print(line)


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
    show(rows)
    write("codec", about, rows, marks(rows))


if __name__ == "__main__":
    main()
