"""Large objects over TLS on loopback, up and down: fedot, a bare gRPC stream, and two peers.

    python benchmarks/transport.py --gb 1 10 --peers .venv-peers/bin/python

Every side is a process of its own. Rates are in 10^6 bytes a second, from the first call to the
last byte on the receiver's disk; memory is the peak of RssAnon of each side with its children;
processor time is that of both sides. The payload is read once before each transfer where it is
small beside the memory, so that the disk's reading is not what is compared. The floor comes twice:
with one fdatasync at the end, and with one every 8 MiB, as often as a site may have to wait.
Writes `benchmarks/results/transport.json`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from record import Row, mark, write
from transport_arms import Arm, Load, Run, crc_of, flower_arm, pair
from transport_keys import write_keys
from transport_watch import ShortOfMemory, available_bytes

MB = 1e6
RECEIVER = {"up": "server", "down": "client"}
CALLER = {"up": "client", "down": "client"}
FLOOR, SYNCED = "gRPC stream", "gRPC stream, fdatasync every 8 MiB"
FLOWER, NVFLARE = "Flower 1.41", "NVFlare 2.9"
NOTES = {
    FLOOR: "no digest, no checksum, no resume; one fdatasync at the end",
    SYNCED: "no digest, no checksum, no resume",
    FLOWER: (
        "one array in one message, in memory at both ends; protobufs over HTTPS (1.41 has left "
        "gRPC here); no client certificates; the time of an empty message taken off"
    ),
    NVFLARE: "its file downloader over grpcs with mutual TLS; no fdatasync, no digest",
    "fedot": "SHA-256, CRC-32C of every chunk, durable before it is acknowledged, resumable",
}


def make_payload(path: Path, size: int) -> None:
    """Bytes that nothing can compress, as fast as AES makes them."""
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(1 << 20)
    with path.open("wb") as file:
        for start in range(0, size, len(zeros)):
            file.write(stream.update(zeros[: size - start]))


def load_of(work: Path, size: int) -> Load:
    path = work / f"payload-{size}"
    if not path.exists() or path.stat().st_size != size:
        make_payload(path, size)
    return Load(work, size, crc_of(path))


def all_arms(peers: str | None) -> dict[str, Arm]:
    mine = sys.executable
    arms = {
        FLOOR: pair("transport_floor.py", mine, CALLER),
        SYNCED: pair("transport_floor.py", mine, CALLER, sync=8 << 20),
    }
    if Path(__file__).with_name("transport_fedot.py").exists():
        arms["fedot"] = pair("transport_fedot.py", mine, CALLER)
    if peers:
        arms[NVFLARE] = pair("transport_nvflare.py", peers, RECEIVER)
        arms[FLOWER] = flower_arm(peers)
    return arms


def run_once(arm: Arm, load: Load, way: str) -> Run:
    if load.size < available_bytes() / 4:
        crc_of(load.payload)  # It is in the page cache now, for every arm alike.
    return arm(load, way)


def row_of(name: str, way: str, size: int, runs: list[Run]) -> Row:
    """Medians over the runs, with the slowest and the fastest."""
    rates = [size / MB / run.seconds for run in runs]
    used = [run.processor_seconds / (size / 1e9) for run in runs]
    row: Row = {"arm": name, "way": way, "bytes": size, "repeats": len(runs)}
    row |= {"mb_per_s": statistics.median(rates), "spread": [min(rates), max(rates)]}
    for side in ("server", "client"):
        row[f"{side}_mb"] = max(getattr(run, f"{side}_bytes") for run in runs) / MB
    row |= {"cpu_s_per_gb": statistics.median(used), "load": os.getloadavg()[0]}
    return row | {"note": NOTES[name]}


def sizes_that_fit(rows: list[Row], name: str, way: str, size: int) -> list[int]:
    """`size`, or the whole GB below it, largest first, that the memory allows by what was seen."""
    seen = [r for r in rows if r["arm"] == name and r["way"] == way and "mb_per_s" in r]
    if not seen:
        return [size]
    last = max(seen, key=lambda row: row["bytes"])
    each = (last["server_mb"] + last["client_mb"]) * MB / last["bytes"]
    # A side that streams has the same memory at any size, so it is small beside the payload.
    if each < 1 or each * size < 0.8 * available_bytes():
        return [size]
    most = int(0.8 * available_bytes() / each / 1e9)
    return [gb * 10**9 for gb in range(most, 0, -1)]


def measure(
    rows: list[Row], arms: dict[str, Arm], work: Path, way: str, size: int, repeats: int
) -> list[Row]:
    """A row of each arm; where the memory does not allow `size`, of the largest that it does.

    The arms take turns, so that what else the machine does meets all of them.
    """
    left = {name: sizes_that_fit(rows, name, way, size) for name in arms}
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            while left[name]:
                try:
                    runs[name].append(run_once(arm, load_of(work, left[name][0]), way))
                except ShortOfMemory:
                    left[name].pop(0)
                    runs[name].clear()
                else:
                    break
    return [row_or_excuse(name, way, size, left[name], runs[name]) for name in arms]


def row_or_excuse(name: str, way: str, size: int, left: list[int], runs: list[Run]) -> Row:
    if not runs:
        return {"arm": name, "way": way, "asked_bytes": size, "note": "does not fit into memory"}
    row = row_of(name, way, left[0], runs)
    if left[0] < size:
        row["asked_bytes"] = size
        row["note"] += f"; {size / 1e9:g} GB does not fit into this machine's memory"
    return row


def marks(rows: list[Row]) -> list[Row]:
    """What issue and docs promise, for every size and way that was measured."""
    found = []
    for mine in (row for row in rows if row["arm"] == "fedot"):
        label = f"{mine['way']}, {mine['bytes'] / 1e9:g} GB"
        alike = {
            row["arm"]: row
            for row in rows
            if row["way"] == mine["way"]
            and mine["bytes"] in (row.get("bytes"), row.get("asked_bytes"))
            and "mb_per_s" in row
        }
        for floor in (FLOOR, SYNCED):
            if floor in alike:
                ratio = mine["mb_per_s"] / alike[floor]["mb_per_s"]
                found.append(mark(f"{label}: rate over {floor}", ratio, "at_least", 0.8))
        for side in ("server", "client"):
            found.append(mark(f"{label}: {side}'s MB", mine[f"{side}_mb"], "at_most", 150.0))
        found += against_peers(label, mine, [alike[p] for p in (FLOWER, NVFLARE) if p in alike])
    return found


def against_peers(label: str, mine: Row, peers: list[Row]) -> list[Row]:
    """Three times the better peer in rate or in memory, and no worse in the other."""
    if not peers:
        return []
    rate = mine["mb_per_s"] / max(row["mb_per_s"] for row in peers)
    memory = min(larger_side(row) for row in peers) / larger_side(mine)
    name = f"{label}: of rate and memory over the peers' best, the"
    return [
        mark(f"{name} larger gain", max(rate, memory), "at_least", 3.0),
        mark(f"{name} smaller gain", min(rate, memory), "at_least", 1.0),
    ]


def larger_side(row: Row) -> float:
    return max(float(row["server_mb"]), float(row["client_mb"]))


def show(row: Row) -> None:
    if "mb_per_s" not in row:
        print(f"{row['arm']:36} {row['way']:5} {row['note']}", flush=True)
        return
    line = f"{row['arm']:36} {row['way']:5} {row['bytes'] / 1e9:5g} GB {row['mb_per_s']:6.0f} MB/s"
    line += f"  server {row['server_mb']:6.0f} MB  client {row['client_mb']:6.0f} MB"
    print(f"{line}  {row['cpu_s_per_gb']:5.2f} CPU-s/GB  load {row['load']:.1f}", flush=True)


def parsed() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--arms", nargs="+", help="names, or how they begin; default: all")
    parser.add_argument("--repeats", type=int, default=3, help="below 5 GB; above it is one")
    parser.add_argument("--peers", help="python of the environment that has the peers")
    parser.add_argument("--work", type=Path, default=Path("runs/transport"))
    parser.add_argument("--no-write", action="store_true", help="only show, keep no results")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    arms = all_arms(options.peers)
    if options.arms:
        wanted = tuple(options.arms)
        arms = {name: arm for name, arm in arms.items() if name.startswith(wanted)}
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sizes = [int(gb * 1e9) for gb in sorted(options.gb)]
    if shutil.disk_usage(work).free < 2.5 * max(sizes):
        sys.exit(f"{work} has too little free space; {2.5 * max(sizes) / 1e9:g} GB must be free.")
    write_keys(work / "keys")
    rows: list[Row] = []
    try:
        for size in sizes:
            repeats = options.repeats if size < 5e9 else 1
            for way in ("up", "down"):
                new = measure(rows, arms, work, way, size, repeats)
                for row in new:
                    show(row)
                rows += new
    finally:
        shutil.rmtree(work)
    found = marks(rows)
    for one in found:
        print(f"{'holds' if one['holds'] else 'FAILS'}  {one['name']}: {one['value']:.2f}")
    if not options.no_write:
        write("transport", rows, found, ("grpcio", "cryptography", "google-crc32c"))


if __name__ == "__main__":
    main()
