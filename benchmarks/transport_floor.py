"""The floor: a bare gRPC stream of raw bytes, as little Python as there can be.

The same mutual TLS, message size, file reading, file writing and fdatasync as fedot has; no
digests, no checksums, no resuming, no identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from transport_sides import CHUNK_BYTES, Job, job, serve

OPTIONS = [("grpc.max_receive_message_length", CHUNK_BYTES + 1024)]


def chunks(job: Job) -> Iterator[bytes]:
    with job.payload.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def write(job: Job, messages: Iterable[bytes]) -> None:
    with job.received.open("wb", buffering=0) as file:
        unsynced = 0
        for message in messages:
            file.write(message)
            unsynced += len(message)
            if job.sync_bytes and unsynced >= job.sync_bytes:
                os.fdatasync(file.fileno())
                unsynced = 0
        os.fdatasync(file.fileno())


def start_server(job: Job) -> grpc.Server:
    def up(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        write(job, messages)
        return b""

    handlers = {
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Down": grpc.unary_stream_rpc_method_handler(lambda request, context: chunks(job)),
    }
    ca, certificate, key = job.keys()
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    server = grpc.server(ThreadPoolExecutor(2), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    server.add_secure_port(f"localhost:{job.port}", credentials)
    server.start()
    return server


def open_channel(job: Job) -> grpc.Channel:
    ca, certificate, key = job.keys()
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    channel = grpc.secure_channel(f"localhost:{job.port}", credentials, OPTIONS)
    grpc.channel_ready_future(channel).result(30)
    return channel


def main() -> None:
    mine = job()
    if mine.side == "server":
        server = start_server(mine)
        serve(None)
        server.stop(0).wait()
        return
    with open_channel(mine) as channel:
        if mine.way == "up":
            serve(lambda: channel.stream_unary("/floor/Up")(chunks(mine)))
        else:
            serve(lambda: write(mine, channel.unary_stream("/floor/Down")(b"")))


if __name__ == "__main__":
    main()
