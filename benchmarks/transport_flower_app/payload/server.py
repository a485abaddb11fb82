"""Sends the payload to the one node, or asks it for the payload, and writes down when."""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


def exchange(grid: Grid, way: str, source: str) -> tuple[float, Message, float]:
    """One message and its reply: when the first was begun, and when the second was here whole."""
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    begin = time.monotonic()
    content = RecordDict({"config": ConfigRecord({"way": way, "source": source})})
    if way == "down":
        content["arrays"] = ArrayRecord({"payload": Array(np.fromfile(source, np.float32))})
    sent = list(grid.push_messages([Message(content, nodes[0], "train")]))
    # As Grid.send_and_receive does, which looks for replies only every three seconds.
    while not (replies := list(grid.pull_messages(sent))):
        time.sleep(0.3)
    [reply] = replies
    if way == "up":
        reply.content["arrays"]["payload"].numpy()
    return begin, reply, time.monotonic()


@app.main()
def main(grid: Grid, context: Context) -> None:
    way, source = str(context.run_config["way"]), str(context.run_config["source"])
    report = Path(str(context.run_config["report"]))
    begin, reply, end = exchange(grid, way, source)
    if reply.has_error():
        report.with_suffix(".part").write_text(json.dumps({"error": reply.error.reason}))
    else:
        seen = reply.content["seen"]
        came_up = way == "up"
        crc = zlib.crc32(reply.content["arrays"]["payload"].numpy()) if came_up else seen["crc"]
        times = {"begin": begin, "in": seen["in"], "out": seen["out"], "end": end, "crc": crc}
        report.with_suffix(".part").write_text(json.dumps(times))
    report.with_suffix(".part").rename(report)
