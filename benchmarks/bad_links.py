"""Transfers over bad links at full size: 200 ms with 1 % loss, and 1 MB/s cut every 20 s.

`python benchmarks/bad_links.py`: real gRPC and TLS through the proxy that the tests use at small
scale, about five minutes. Prints a table and writes benchmarks/results/bad_links.json.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from record import Row, mark, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "transport"))

from bad_link import BadLink, Link
from bulk_server import BulkServer, make_parties

from fedot.transport.binding import Binding, File
from fedot.transport.sending import WINDOW_BYTES

MB = 2**20
# (name, link, bytes). Each way of a 200 ms link takes half of it.
LINKS = (
    ("200 ms, 1 % loss", Link(delay_s=0.1, loss_prob=0.01, recovery_s=0.2), 16 * MB),
    ("1 MB/s, cut every 20 s", Link(bytes_per_s=1e6, cut_after_s=20.0), 64 * MB),
)
# TLS, HTTP/2 and control calls.
ENVELOPE = 1.02


def measure(parties: Path, name: str, link: Link, num_bytes: int) -> Row:
    payload = random.Random(1).randbytes(num_bytes)
    digest = sha256(payload).hexdigest()
    with (
        tempfile.TemporaryDirectory() as made,
        BulkServer(parties, Path(made) / "store") as server,
        BadLink(server.port, link, random.Random(3)) as way,
        server.channel("site", way.port, stall_timeout_s=30.0, give_up_after_s=None) as channel,
    ):
        folder = Path(made)
        (folder / "offered").write_bytes(payload)
        server.shelf.put(digest, {"offered": folder / "offered"}, {"offered": digest})
        began = time.monotonic()
        channel.upload(Binding("run", 1, "site", digest), payload)
        up_s, up_cuts, up_bytes = time.monotonic() - began, way.num_cuts, way.up_bytes
        began = time.monotonic()
        file = File("offered", num_bytes, digest)
        channel.download(Binding("run", 0, "site", digest), file, folder / "got")
        down_s, down_cuts = time.monotonic() - began, way.num_cuts - up_cuts
        again = (up_bytes - num_bytes * ENVELOPE, server.counts.out_bytes - num_bytes)
    return {
        "link": name,
        "bytes": num_bytes,
        "up_s": round(up_s, 1),
        "up_cuts": up_cuts,
        "up_resent_per_cut": round(max(0.0, again[0]) / max(1, up_cuts)),
        "down_s": round(down_s, 1),
        "down_cuts": down_cuts,
        "down_resent_per_cut": round(max(0, again[1]) / max(1, down_cuts)),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        parties = make_parties(Path(made), "site")
        rows = []
        for name, link, num_bytes in LINKS:
            rows.append(measure(parties, name, link, num_bytes))
            print(rows[-1], flush=True)
    worst = max(max(row["up_resent_per_cut"], row["down_resent_per_cut"]) for row in rows)
    marks = [mark("bytes resent per cut", worst, "at_most", WINDOW_BYTES)]
    print(marks)
    write("bad_links", rows, marks, ["grpcio", "cryptography"])


if __name__ == "__main__":
    main()
