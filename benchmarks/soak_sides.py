"""The two processes of the stream of `benchmarks/soak.py`: fedot's own upload, without a disk.

The site's object is the key stream of AES-CTR, which can be read from any offset; the server's disk
drops what it is told to write. Rows, offsets, digests and acknowledgements are all as they are.
"""

from __future__ import annotations

import json
import time
from hashlib import sha256

import google_crc32c
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from transport_fedot import LIMITS, RUN, Server, binding, channel, make_identities
from transport_sides import CHUNK_BYTES, Job, job, serve

from fedot.errors import ConfigError
from fedot.transport.disk import Disk
from fedot.transport.sending import Source
from fedot.transport.upload import UploadStore

AES_BLOCK = 16
KEY = sha256(b"fedot soak").digest()
ZEROS = bytes(CHUNK_BYTES + AES_BLOCK)


class Generated(Source):
    """So many bytes of a key stream; nothing is kept."""

    def __init__(self, size: int) -> None:
        super().__init__(b"")
        self.size = size

    def read(self, offset: int, num_bytes: int) -> bytes:
        """The bytes at an offset, whichever it is."""
        block, skip = divmod(offset, AES_BLOCK)
        mode = modes.CTR(block.to_bytes(AES_BLOCK, "big"))
        stream = Cipher(algorithms.AES(KEY), mode).encryptor()
        num_bytes = min(num_bytes, CHUNK_BYTES, self.size - offset)
        return stream.update(memoryview(ZEROS)[: skip + num_bytes])[skip:]

    def digests(self) -> tuple[str, int]:
        """SHA-256 and CRC-32C of all of it."""
        found, crc = sha256(), 0
        for offset in range(0, self.size, CHUNK_BYTES):
            chunk = self.read(offset, CHUNK_BYTES)
            found.update(chunk)
            crc = google_crc32c.extend(crc, chunk)
        return found.hexdigest(), crc


class NoDisk(Disk):
    """A disk that keeps names and drops contents, all but their CRC-32C."""

    def __init__(self) -> None:
        self.next = self.crc = 0

    def write(self, file: int, data: memoryview, offset: int) -> None:
        """Drop it; it must come in order."""
        if offset != self.next:
            raise ConfigError(f"byte {offset} came after {self.next}; the stream has a gap.")
        self.next = offset + len(data)
        self.crc = google_crc32c.extend(self.crc, bytes(data))

    def read(self, file: int, num_bytes: int, offset: int) -> bytes:
        """There is nothing; the store has to have hashed it when it came."""
        raise ConfigError("the store reads an upload again; the soak keeps none.")


def serve_server(mine: Job) -> None:
    make_identities(mine.work / "fedot")
    folder = mine.work / "fedot" / "uploads"
    disk = NoDisk()
    with UploadStore(folder, LIMITS, disk) as store:

        def committed() -> None:
            [update] = store.committed(RUN, 1)
            on_disk = sum(path.stat().st_size for path in folder.glob("*.update"))
            # The store has compared SHA-256 of what came with this digest, or it were not here.
            told = {"sha256": update.digest, "crc32c": disk.crc, "bytes_on_disk": on_disk}
            print(json.dumps(told), flush=True)

        server = Server(mine.work / "fedot", store, committed)
        server.start(mine.port)
        serve(None)
        server.stop()


def serve_client(mine: Job) -> None:
    source = Generated(mine.size)
    digest, crc = source.digests()
    print("ready", flush=True)
    input()
    with channel(mine.work / "fedot", mine.port) as opened:
        begin = time.monotonic()
        opened.upload(binding(digest), source)
        found = {"begin": begin, "end": time.monotonic(), "sha256": digest, "crc32c": crc}
    print(json.dumps(found), flush=True)


def main() -> None:
    mine = job()
    (serve_server if mine.side == "server" else serve_client)(mine)


if __name__ == "__main__":
    main()
