"""Starting is light: what answers sites imports no torch."""

from __future__ import annotations

import os
import pkgutil
import socket
import subprocess
import sys
from pathlib import Path
from random import Random

import fedot.transport
from fedot.transport import fedot_pb2 as pb
from fedot.transport.channel import Channel
from fedot.transport.identity import init_owner, read_kit, request_certificate, sign_request
from fedot.transport.service import PROTOCOL

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft")
REST = ("journal", "messages", "cards", "config", "engines.open_site", "federation.open_server")
# `fedot serve`, which says what is imported where it would begin to work.
SERVER = """
import sys
from fedot.cli.app import main
from fedot.federation.serve import Server

def work(server, until_done):
    sys.stdin.readline()
    print("HEAVY", sorted({"torch", "transformers", "peft"} & set(sys.modules)), flush=True)
    return True

Server.work = work
sys.argv[0] = "fedot"
main()
"""


def python(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_no_module_of_the_transport_imports_torch() -> None:
    found = [f"fedot.transport.{m.name}" for m in pkgutil.iter_modules(fedot.transport.__path__)]
    assert len(found) > 20
    names = [*found, *(f"fedot.{name}" for name in REST)]
    code = f"import sys, {', '.join(names)}; print(sorted({set(HEAVY)} & set(sys.modules)))"
    out, _ = python(code).communicate(timeout=60)
    assert out.strip() == "[]"


def test_server_answers_a_site_s_hello_without_torch(tmp_path: Path) -> None:
    init_owner(tmp_path / "pki", "owner", ["localhost"])
    asked = request_certificate("hospital-a", tmp_path)
    kit = sign_request(tmp_path / "pki", asked.csr_path, asked.fingerprint, "site", 30)
    credentials = read_kit(kit).channel_credentials(tmp_path / "hospital-a.key")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"localhost:{probe.getsockname()[1]}"
    options = ("--listen", where, "--metrics", "127.0.0.1:0", "--home", str(tmp_path / "server"))
    with python(SERVER, "serve", *options, "--pki", str(tmp_path / "pki")) as server:
        with Channel(where, lambda: credentials, Random(0), give_up_after_s=60) as channel:
            hello = pb.HelloRequest(protocol=PROTOCOL, version="1", dataset_id="a")
            assert channel.call("Hello", hello, pb.HelloReply).site == "hospital-a"
        out, _ = server.communicate("tell\n", timeout=60)
    assert "HEAVY []" in out
