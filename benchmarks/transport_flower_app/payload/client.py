"""Takes the payload, or replies with it."""

from __future__ import annotations

import time
import zlib

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    crc, content = 0, RecordDict()
    array = message.content["arrays"]["payload"].numpy() if config["way"] == "down" else None
    arrived = time.monotonic()
    if array is not None:
        crc = zlib.crc32(array)
    begun = time.monotonic()
    if config["way"] == "up":
        content["arrays"] = ArrayRecord(
            {"payload": Array(np.fromfile(str(config["source"]), np.float32))}
        )
    content["seen"] = MetricRecord({"in": arrived, "out": begun, "crc": crc})
    return Message(content, reply_to=message)
