"""Flower 1.41 moves the payload as one array of one message: SuperLink, SuperNode and both apps.

Its fleet and runtime interfaces are protobufs over HTTPS in this version, no longer gRPC. TLS is
Flower's own: the server shows a certificate, clients have none (nodes sign their requests). The
SuperLink and the ServerApp are the server's side, the SuperNode and the ClientApp the client's.
Nothing is written to disk, and what an exchange of empty messages takes (it starts a ClientApp)
is taken off: both in its favour.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

APP = Path(__file__).with_name("transport_flower_app")
DEADLINE_S = 3600


class Flower:
    """A SuperLink and a SuperNode with one working folder."""

    def __init__(self, bin_folder: Path, work: Path, port: int) -> None:
        self._bin, self._work, self._port = bin_folder, work, port
        self._home = work / "flower"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> dict[str, int]:
        """Start both and say their process ids, by side."""
        self._home.mkdir(exist_ok=True)
        ca, address = self._work / "keys" / "ca.crt", f"127.0.0.1:{self._port}"
        self._home.joinpath("config.toml").write_text(
            f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{address}"\n'
            f'root-certificates = "{ca}"\n'
        )
        keys = self._work / "keys"
        link = ["--host", "127.0.0.1", "--port", str(self._port), "--ssl-ca-certfile", str(ca)]
        link += ["--ssl-certfile", str(keys / "server.crt")]
        link += ["--ssl-keyfile", str(keys / "server.key")]
        link += ["--disable-runtime-dependency-installation"]
        node = ["--superlink", address, "--root-certificates", str(ca)]
        node += ["--port", str(self._port + 1)]
        self._launch("server", "flower-superlink", link)
        self._wait_for_log("server", "Uvicorn running", "startup complete")
        self._launch("client", "flower-supernode", node)
        return {side: process.pid for side, process in self._processes.items()}

    def exchange(self, way: str, source: Path) -> dict[str, Any]:
        """One run of the app: when what happened, on the monotonic clock."""
        report = self._home / "report.json"
        report.unlink(missing_ok=True)
        config = f'way="{way}" source="{source}" report="{report}"'
        command = [str(self._bin / "flwr"), "run", str(APP), "bench", "-c", config]
        subprocess.run(command, env=self._environment(), check=True, capture_output=True)
        deadline = time.monotonic() + DEADLINE_S
        while not report.exists():
            self._check_alive(deadline)
            time.sleep(0.1)
        found: dict[str, Any] = json.loads(report.read_text())
        if "error" in found:
            raise RuntimeError(f"Flower's client failed: {found['error']}")
        return found

    def stop(self) -> None:
        """End both, and with them what they started."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _check_alive(self, deadline: float) -> None:
        for side, process in self._processes.items():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = self._home.joinpath(f"{side}.log").read_text()[-2000:]
                raise RuntimeError(f"Flower's {side} ended or took too long:\n{tail}")

    def _environment(self) -> dict[str, str]:
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        path = f"{self._bin}{os.pathsep}{os.environ['PATH']}"
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return {**kept, **quiet, "FLWR_HOME": str(self._home), "PATH": path}

    def _launch(self, side: str, name: str, options: list[str]) -> None:
        with self._home.joinpath(f"{side}.log").open("wb") as log:
            self._processes[side] = subprocess.Popen(
                [str(self._bin / name), *options],
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_for_log(self, side: str, *texts: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            log = self._home.joinpath(f"{side}.log").read_text()
            if any(text in log for text in texts):
                return
            self._check_alive(deadline)
            time.sleep(0.1)


@contextmanager
def flower(bin_folder: Path, work: Path, port: int) -> Iterator[tuple[Flower, dict[str, int]]]:
    both = Flower(bin_folder, work, port)
    try:
        yield both, both.start()
    finally:
        both.stop()
