"""A hundred sites in one run on this machine: rounds a minute, and the server's memory over rounds.

    python benchmarks/many_sites.py --sites 100 --rounds 50

The server is `fedot serve` as it is, with a tiny model. Sites are threads with a certificate, a
connection and transfers of their own; they send updates that were encoded beforehand instead of
training, so that the machine measures the server. `make bench-sites`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

from fedot.cards import ResultCard, RunCard, TaskCard
from fedot.engines.remote import STATE_FILE
from fedot.messages import digest_of
from fedot.transport import fedot_pb2 as pb
from fedot.transport.binding import Binding, File
from fedot.transport.channel import Channel
from fedot.transport.identity import init_owner, read_kit, request_certificate, sign_request
from fedot.transport.service import PROTOCOL

NUM_PROCESSES = 4
NUM_UPDATES = 8
TEXT = "the owner keeps the model and the site keeps its records; round after round they meet. "
FLAT = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        folder, address, first, last = asked.worker
        work(Path(folder), address, range(int(first), int(last)))
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), asked.sites, asked.rounds)
    report(measured, asked)


def measure(folder: Path, num_sites: int, num_rounds: int) -> dict[str, Any]:
    """One run, from the server's start to its end."""
    pki = folder / "pki"
    init_owner(pki, "benchmark", ["localhost"])
    for number in range(num_sites):
        request = request_certificate(name_of(number), folder / "sites")
        sign_request(pki, request.csr_path, request.fingerprint, "site")
    config = write_config(folder, num_rounds)
    address = f"localhost:{free_port()}"
    server = start(
        *("-m", "fedot.cli", "serve", str(config), "--home", str(folder / "server")),
        *("--pki", str(pki), "--listen", address, "--metrics", "127.0.0.1:0", "--until-done"),
    )
    write_updates(folder)
    bounds = [round(n * num_sites / NUM_PROCESSES) for n in range(NUM_PROCESSES + 1)]
    sites = [
        start(__file__, "--worker", str(folder), address, str(first), str(last))
        for first, last in itertools.pairwise(bounds)
    ]
    memory = watch(server.pid, folder, num_rounds)
    codes = [process.wait() for process in (server, *sites)]
    if any(codes):
        raise SystemExit(f"a process failed: {codes}")
    return {"memory": memory, "lines": closed(folder)}


def write_config(folder: Path, num_rounds: int) -> Path:
    """A tiny model with random weights, its tokenizer, and a run without DP."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT], 300, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>"
    )
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=320, **shape, **heads))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = {
        "model": {"path": str(folder / "model"), "device": "cpu"},
        "data": {"clients": {}, "max_tokens": 32},
        "emulator": {"keep_ratio": 0.5, "distill_steps": 0},
        "privacy": {"unit": "none"},
        "federation": {"rounds": num_rounds},
        "evaluation": {"ceiling_learning_rates": []},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def write_updates(folder: Path) -> None:
    """Updates that fit the run's adapter, encoded as sites encode them."""
    import torch

    from fedot.client.chains import update_chain
    from fedot.compression.codec import encode
    from fedot.config import PayloadConfig
    from fedot.emulator.bundle import read_bundle
    from fedot.models.adapters import attach

    bundle = wait_for_bundle(folder)
    found = read_bundle(bundle)
    shapes = attach(found.load(), found.adapter, found.layer_map).state()
    rng = torch.Generator().manual_seed(0)
    for number in range(NUM_UPDATES):
        update = {n: 1e-3 * torch.randn(t.shape, generator=rng) for n, t in shapes.items()}
        encoded = encode(update, update_chain(PayloadConfig()), seed=0)
        (folder / f"update-{number}").write_bytes(encoded.payload)
        (folder / "bytes-after.json").write_text(json.dumps(encoded.bytes_after))


def work(folder: Path, address: str, numbers: range) -> None:
    """Some sites, a thread each."""
    payloads = [(folder / f"update-{number}").read_bytes() for number in range(NUM_UPDATES)]
    after = json.loads((folder / "bytes-after.json").read_text())
    sites = [
        threading.Thread(target=be_site, args=(folder, address, number, payloads, after))
        for number in numbers
    ]
    for site in sites:
        site.start()
    for site in sites:
        site.join()


def be_site(
    folder: Path, address: str, number: int, payloads: list[bytes], after: dict[str, int]
) -> None:
    """A site's loop, but for the training."""
    name = name_of(number)
    kit, key = read_kit(folder / "pki" / f"{name}.kit.json"), folder / "sites" / f"{name}.key"
    run_id = ""
    with Channel(address, lambda: kit.channel_credentials(key), Random(number)) as channel:
        hello = pb.HelloRequest(protocol=PROTOCOL, version="benchmark", dataset_id=name)
        channel.call("Hello", hello, pb.HelloReply)
        while True:
            asked = pb.NextRequest(run_id=run_id, wait_s=20)
            reply = channel.call("Next", asked, pb.NextReply, 20)
            what = reply.WhichOneof("what")
            if what == "over":
                channel.call("Report", pb.ReportRequest(phase="over"), pb.ReportReply)
                return
            if what == "run_json":
                run_id = RunCard.read(reply.run_json).run_id
            elif what == "task_json":
                task = TaskCard.read(reply.task_json)
                do_round(channel, folder, name, task, payloads[(number + task.round) % 8], after)


def do_round(
    channel: Channel,
    folder: Path,
    name: str,
    task: TaskCard,
    payload: bytes,
    after: dict[str, int],
) -> None:
    """Get the state, send an update."""
    state = File(STATE_FILE, task.state_bytes, task.state_digest)
    path = folder / "sites" / f"{name}.state"
    path.unlink(missing_ok=True)
    channel.download(Binding(task.run_id, task.round, name, task.state_digest), state, path)
    card = ResultCard(epsilon=None, bytes_after=after, received_bytes=task.state_bytes)
    binding = Binding(task.run_id, task.round, name, digest_of(payload))
    channel.upload(binding, payload, card.model_dump_json())


def watch(pid: int, folder: Path, num_rounds: int) -> list[float]:
    """The server's private memory in MB as each round closes."""
    memory: list[float] = []
    status = Path(f"/proc/{pid}/status")
    while len(memory) <= num_rounds and status.exists():
        num_closed = len(closed(folder))
        while len(memory) < num_closed:
            lines = status.read_text().splitlines() if status.exists() else []
            memory += [int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon")]
            if not lines:
                return memory
        time.sleep(0.05)
    return memory


def closed(folder: Path) -> list[dict[str, Any]]:
    """The rounds that are closed, the start among them."""
    for path in folder.glob("server/jobs/*/run/metrics.jsonl"):
        return [json.loads(line) for line in path.read_text().splitlines()]
    return []


def wait_for_bundle(folder: Path) -> Path:
    """The run's bundle, once the server has built it."""
    while True:
        for path in folder.glob("server/jobs/*/run/bundle"):
            return path
        time.sleep(0.1)


def report(measured: dict[str, Any], asked: argparse.Namespace) -> None:
    """Print, and write the file that docs quote."""
    from record import mark, write

    lines, memory = measured["lines"][1:], measured["memory"]
    seconds = [line["seconds"] for line in lines]
    per_minute = 60 / statistics.median(seconds)
    tenth = max(1, len(memory) // 10)
    early = statistics.median(memory[tenth : 3 * tenth])
    late = statistics.median(memory[-2 * tenth :])
    row = {
        "sites": asked.sites,
        "rounds": len(lines),
        "failed": sum(len(line["failed"]) for line in lines),
        "seconds_a_round": statistics.median(seconds),
        "rounds_a_minute": per_minute,
        "server_mb_early": early,
        "server_mb_late": late,
        "server_mb_most": max(memory),
    }
    for key, value in row.items():
        print(f"{key:18} {value:.2f}" if isinstance(value, float) else f"{key:18} {value}")
    marks = [mark("server memory, late over early", late / early, "at_most", FLAT)]
    print(marks)
    if not asked.no_write:
        print(f"written to {write('many_sites', [row], marks, ('grpcio', 'torch'))}")


def name_of(number: int) -> str:
    return f"site-{number:03}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """A Python process of its own, one thread for arithmetic."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *arguments], env=environment)


if __name__ == "__main__":
    main()
