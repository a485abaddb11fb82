"""NVFlare 2.9 moves the payload: its file downloader between two cells over grpcs, mutual TLS.

The receiver asks for chunk after chunk (5 MiB, the default) and writes them to a file, which is
NVFlare's way with the least memory. It syncs nothing and compares no digest; in its favour, no
time is added for either. Run by `benchmarks/transport.py` in the peers' environment.
"""

from __future__ import annotations

import time

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.streaming.file_downloader import add_file, download_file
from nvflare.fuel.f3.streaming.obj_downloader import ObjectDownloader
from transport_sides import Job, job, serve

REF = "payload"


def start_cell(job: Job) -> Cell:
    credentials = {
        DriverParams.CA_CERT.value: job.key("ca.crt"),
        DriverParams.SERVER_CERT.value: job.key("server.crt"),
        DriverParams.SERVER_KEY.value: job.key("server.key"),
        DriverParams.CLIENT_CERT.value: job.key("client.crt"),
        DriverParams.CLIENT_KEY.value: job.key("client.key"),
    }
    url = f"grpcs://localhost:{job.port}"
    cell = Cell(fqcn=job.side, root_url=url, secure=True, credentials=credentials)
    cell.start()
    return cell


def receive(cell: Cell, job: Job, sender: str) -> None:
    error, path = download_file(
        from_fqcn=sender,
        ref_id=REF,
        per_request_timeout=60,
        cell=cell,
        location=str(job.work),
    )
    if error or path is None:
        raise RuntimeError(f"NVFlare's download failed: {error}")
    job.work.joinpath(path).rename(job.received)


def main() -> None:
    mine = job()
    cell = start_cell(mine)
    receives = (mine.side == "server") == (mine.way == "up")
    if receives:
        # A cell's name has to be its certificate's.
        sender = "client" if mine.side == "server" else "server"
        serve(lambda: receive(cell, mine, sender))
    else:
        downloader = ObjectDownloader(cell=cell, timeout=3600, num_receivers=1)
        add_file(downloader, str(mine.payload), ref_id=REF)
        time.sleep(3)  # The cells greet each other in the background.
        serve(None)
    cell.stop()


if __name__ == "__main__":
    main()
