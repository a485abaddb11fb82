"""Long runs: an object far larger than the memory through an upload, and processes that get killed.

    python benchmarks/soak.py --gb 128
    python benchmarks/soak.py --gb 0 --minutes 30

The object is the key stream of AES-CTR, made where it is read and dropped where it would be
written; nothing of it is on a disk. Its SHA-256 is computed by the site before it sends, and by the
server's store from what arrives. What is watched is whether memory stays where it is. Writes
`benchmarks/results/soak.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import RESULTS, Row, mark, write
from transport_arms import sides, wait_for
from transport_keys import write_keys
from transport_watch import Series, Watch

HERE = Path(__file__).parent
MB = 1e6
POINTS = 64


def stream(work: Path, size: int) -> Row:
    """Send `size` bytes from one process to another: rate, and memory over time."""
    command = [sys.executable, str(HERE / "soak_sides.py")]
    with sides(command, work, size, "up") as both:
        roots = {side: process.pid for side, process in both.items()}
        with Watch(roots) as watch:
            for process in both.values():
                process.stdin.write("go\n")
                process.stdin.flush()
            found = json.loads(wait_for(both["client"], "{", work / "client.log"))
            told = json.loads(wait_for(both["server"], "{", work / "server.log"))
    seconds = found["end"] - found["begin"]
    used = watch.processor_seconds(found["begin"], found["end"])
    row: Row = {"what": "stream", "bytes": size, "seconds": seconds}
    row |= {"mb_per_s": size / MB / seconds, "cpu_s_per_gb": used / (size / 1e9)}
    row |= {"site": ends(found), "server": ends(told)}
    row |= {"bytes_on_disk": told["bytes_on_disk"], "load": os.getloadavg()[0]}
    within = [point for point in watch.series if found["begin"] <= point[0] <= found["end"]]
    for side in roots:
        row[f"{side}_mb"] = watch.peaks[side] / MB
        row[f"{side}_growth_mb"] = growth(within, side) / MB
        row[f"{side}_mb_over_time"] = thinned(within, side)
    return row


def ends(side: Row) -> Row:
    """What a side saw of the object: both digests, of all its bytes."""
    return {key: side[key] for key in ("sha256", "crc32c")}


def growth(series: Series, side: str) -> float:
    """The last tenth's median memory less that of the second tenth, when everything is warm."""
    values = [memory[side] for _, memory in series]
    tenth = max(1, len(values) // 10)
    return statistics.median(values[-tenth:]) - statistics.median(values[tenth : 2 * tenth])


def thinned(series: Series, side: str) -> list[float]:
    step = max(1, len(series) // POINTS)
    return [round(memory[side] / MB, 1) for _, memory in series[::step]]


def kills(work: Path, minutes: float) -> Row:
    """Federations of real processes, killed at random for so long."""
    driver = HERE.parent / "tests" / "engines" / "kill_driver.py"
    told = work / "kills.json"
    options = ["--minutes", str(minutes), "--json", str(told)]
    command = [sys.executable, str(driver), str(work / "kills"), *options]
    paths = {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=os.environ | paths, stdout=subprocess.DEVNULL)
    return {"what": "kills", "minutes": minutes, **json.loads(told.read_text())}


def kill_marks(row: Row) -> list[Row]:
    unfinished = float(row["begun"] - row["finished"])
    return [
        mark("kills: federations that did not finish", unfinished, "at_most", 0.0),
        mark("kills: promises broken", float(sum(row["broken"].values())), "at_most", 0.0),
        mark("kills", float(sum(row["kills"].values())), "at_least", 50.0),
    ]


def stream_marks(row: Row) -> list[Row]:
    name = f"{row['bytes'] / 1e9:g} GB stream"
    same = row["site"] == row["server"]
    found = [mark(f"{name}: digests agree", float(same), "at_least", 1.0)]
    for side in ("server", "client"):
        found.append(mark(f"{name}: {side}'s MB", row[f"{side}_mb"], "at_most", 150.0))
        found.append(mark(f"{name}: {side}'s growth, MB", row[f"{side}_growth_mb"], "at_most", 8.0))
    return found


def kept_parts(new: set[str]) -> tuple[list[Row], list[Row]]:
    """Rows of the results file that were not measured now, and their marks."""
    path = RESULTS / "soak.json"
    old = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows = [row for row in old["rows"] if row["what"] not in new]
    marks_of = {"stream": stream_marks, "kills": kill_marks}
    return rows, [one for row in rows for one in marks_of[row["what"]](row)]


def parsed() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=128.0, help="size of the stream; 0: none")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the kill soak; 0: none")
    parser.add_argument("--work", type=Path, default=Path("runs/soak"))
    parser.add_argument("--no-write", action="store_true", help="only show, keep no results")
    return parser.parse_args()


def show(row: Row) -> None:
    print({key: value for key, value in row.items() if not key.endswith("over_time")})
    for side in ("server", "client"):
        print(f"{side} MB over time:", *row[f"{side}_mb_over_time"])


def main() -> None:
    options = parsed()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rows, found = [], []
    try:
        if options.gb:
            write_keys(work / "keys")
            rows.append(stream(work, int(options.gb * 1e9)))
            found += stream_marks(rows[-1])
            show(rows[-1])
        if options.minutes:
            rows.append(kills(work, options.minutes))
            found += kill_marks(rows[-1])
            print(rows[-1])
    finally:
        if found and all(one["holds"] for one in found):
            shutil.rmtree(work)
        else:
            print(f"{work} keeps what there is to look at")
    for one in found:
        print(f"{'holds' if one['holds'] else 'FAILS'}  {one['name']}: {one['value']:.2f}")
    if not options.no_write:
        # A part that was left out this time keeps what it showed before.
        kept = kept_parts({row["what"] for row in rows})
        rows, found = rows + kept[0], found + kept[1]
        write("soak", rows, found, ("grpcio", "cryptography", "google-crc32c"))


if __name__ == "__main__":
    main()
