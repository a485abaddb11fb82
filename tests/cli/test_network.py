"""`fedot serve`, `join`, `job` and `poc`, as people use them: real processes, real TLS."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedot.cli.app import main
from fedot.federation.open_server import ServerSettings, open_server
from fedot.federation.serve import Watcher
from fedot.transport.identity import init_owner, renew_owner

QUICK = {"evaluation": {"ceiling_learning_rates": []}}
SITES = ("client-0", "client-1")
# Only ends a test that hangs: torch alone takes a slow machine many seconds.
PATIENCE_S = 120.0

Fedot = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedot:
    """`fedot("job", ...)` in this process: exit code, output, errors."""

    def call(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedot", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return call


class Process:
    """A `fedot` of its own."""

    def __init__(self, log: Path, *args: str | Path) -> None:
        self._log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedot.cli", *map(str, args)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Until it has said so."""
        pause = threading.Event()
        for _ in range(int(PATIENCE_S / 0.1)):
            found = re.search(pattern, self.said, re.MULTILINE)
            if found is not None:
                return found
            assert self.process.poll() is None, self.said
            pause.wait(0.1)
        raise AssertionError(f"it never said {pattern!r}: {self.said}")

    def end(self) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """`start("serve", ...)`: a process that does not outlive the test."""
    started: list[Process] = []

    def begin(*args: str | Path) -> Process:
        started.append(Process(tmp_path / f"log-{len(started)}", *args))
        return started[-1]

    yield begin
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()


def federation(config: dict[str, Any]) -> dict[str, Any]:
    """Two sites, without what takes time."""
    clients = {name: config["data"]["clients"][name] for name in SITES}
    return config | QUICK | {"data": config["data"] | {"clients": clients}}


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def admit(fedot: Fedot, pki: Path, home: Path, site: str) -> None:
    """What a site and the owner do, with a phone between them."""
    code, out, _ = fedot("pki", "request", "--site", site, "--dir", home)
    assert code == 0
    found = re.search(r"^fingerprint: (.*)$", out, re.MULTILINE)
    assert found is not None
    told = ("--fingerprint", found[1], "--dir", pki)
    assert fedot("pki", "sign", home / f"{site}.csr", *told)[0] == 0
    (home / "kit.json").write_bytes((pki / f"{site}.kit.json").read_bytes())


@pytest.mark.slow
def test_federation_of_processes_from_its_keys_to_its_results(
    fedot: Fedot,
    start: Callable[..., Process],
    tiny_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    from fedot.config import config_from_dict
    from fedot.federation.run import simulate
    from fedot.seeds import derive_seed

    pki, config = tmp_path / "pki", federation(tiny_config)
    assert fedot("pki", "init", "--dir", pki)[0] == 0
    for name in SITES:
        admit(fedot, pki, tmp_path / name, name)
    servers = config | {"data": {**config["data"], "clients": {}}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(servers))

    server = start("serve", "--home", tmp_path / "server", "--pki", pki,
                   "--listen", "localhost:0", "--metrics", "127.0.0.1:0")  # fmt: skip
    where = server.wait_for(r"listening on (localhost:\d+)")[1]
    ends: tuple[str | Path, ...] = ("--server", where, "--kit", pki / "owner.kit.json")
    code, out, _ = fedot("job", "submit", tmp_path / "job.yaml", *ends)
    job = out.split()[0]
    assert (code, job[:4]) == (0, "job-")
    full = config_from_dict(config)
    for name in SITES:
        home = tmp_path / name
        policy = {"dataset_id": name, "max_epsilon": None, "delta": 1e-5}
        # As a simulation would, so that both can be compared.
        policy["held_out_ratio"] = full.data.held_out_ratio
        policy["held_out_seed"] = derive_seed(full.seed, "split", name)
        (home / "policy.yaml").write_text(yaml.safe_dump(policy))
        start("join", where, "--policy", home / "policy.yaml", "--kit", home / "kit.json",
              "--data", config["data"]["clients"][name], "--home", home / "site",
              "--stay")  # fmt: skip

    code, out, _ = fedot("job", "watch", job, *ends)
    assert code == 0, server.said
    assert f"{job} is done" in out
    assert "round   2" in out
    assert "2 of 2 sites are here" in server.said
    code, out, _ = fedot("job", "list", *ends)
    assert re.search(rf"{job} +job +done +2/2", out)
    assert fedot("job", "fetch", job, "--out", tmp_path / "fetched", *ends)[0] == 0
    simulate(full, tmp_path / "sim")
    assert adapter_bytes(tmp_path / "fetched") == adapter_bytes(tmp_path / "sim")
    assert not list((tmp_path / "server" / "uploads").glob("*.update"))
    code, _, error = fedot("job", "fetch", job, "--out", tmp_path / "fetched", *ends)
    assert (code, "exists" in error) == (2, True)

    goes_back_and_is_taken_up_again(fedot, server, tmp_path / "job.yaml", ends)
    assert server.end() == 0
    lines = (tmp_path / "server" / "audit.jsonl").read_text().splitlines()
    events = {json.loads(line)["event"] for line in lines}
    assert {"started", "hello", "released", "received", "fetched", "resumed", "stopped"} <= events


def goes_back_and_is_taken_up_again(
    fedot: Fedot, server: Process, config: Path, ends: tuple[str | Path, ...]
) -> None:
    """A long job: rolled back, aborted, resumed, aborted."""
    long = ("--name", "long", "--set", "federation.rounds=400")
    _, out, _ = fedot("job", "submit", config, *long, *ends)
    job = out.split()[0]
    server.wait_for(r"(?s)\(long\) starts.*round   2")
    assert fedot("job", "rollback", job, "1", *ends)[0] == 0
    server.wait_for("back to round 1")
    code, out, _ = fedot("job", "show", job, *ends)
    assert "back to round 1" in out
    assert all(name in out for name in SITES)
    assert fedot("job", "abort", job, *ends)[0] == 0
    code, out, _ = fedot("job", "watch", job, *ends)
    assert (code, "aborted by owner" in out) == (2, True)
    assert fedot("job", "rollback", job, "0", *ends)[0] == 0
    said = len(server.said)
    assert fedot("job", "resume", job, *ends)[0] == 0
    server.wait_for(rf"(?s)\A.{{{said}}}.*{job} \(long\) goes on.*back to round 0")
    assert fedot("job", "abort", job, *ends)[0] == 0
    server.wait_for(rf"(?s)\A.{{{said}}}.*{job} is aborted")


@pytest.mark.slow
def test_poc_with_dp_keeps_every_ledger_within_its_policy(
    start: Callable[..., Process], tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    from fedot.privacy.ledger import Ledger

    (tmp_path / "job.yaml").write_text(yaml.safe_dump(federation(tiny_config)))
    poc = start("poc", tmp_path / "job.yaml", "--out", tmp_path / "poc",
                "--set", "privacy.unit=example", "--set", "privacy.target_epsilon=4")  # fmt: skip
    assert poc.process.wait(PATIENCE_S) == 0, poc.said
    assert "(job) starts" in poc.said
    assert "what it means" in poc.said.partition("| job job-")[2]
    for name in SITES:
        home = tmp_path / "poc" / name
        terms = yaml.safe_load((home / "policy.yaml").read_text())
        ledger = Ledger(home / "policy.ledger.jsonl")
        assert [entry.digest is not None for entry in ledger.entries()] == [True, True]
        assert 0 < ledger.epsilon(name, terms["delta"]) <= terms["max_epsilon"] == 4


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    init_owner(tmp_path / "pki", "Owner", ["localhost"])
    return tmp_path / "pki"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield int(other.getsockname()[1])


def serve(fedot: Fedot, tmp_path: Path, pki: Path, *args: str | Path) -> tuple[int, str]:
    """A server that ends at once if it can start."""
    base = ("serve", "--home", tmp_path / "server", "--pki", pki, "--until-done")
    code, _, error = fedot(*base, *args)
    return code, error


def test_server_without_the_owners_folder_says_so(fedot: Fedot, tmp_path: Path) -> None:
    code, error = serve(fedot, tmp_path, tmp_path / "nowhere")
    assert code == 2
    assert "is no owner's folder; make one with fedot pki init" in error
    assert not (tmp_path / "server").exists()


@pytest.mark.parametrize("missing", ["server.pem", "signing.key", "trusted.crt"])
def test_server_with_half_of_the_owners_folder_names_what_is_missing(
    fedot: Fedot, tmp_path: Path, pki: Path, missing: str
) -> None:
    (pki / missing).unlink()
    code, error = serve(fedot, tmp_path, pki, "--listen", "localhost:0",
                        "--metrics", "127.0.0.1:0")  # fmt: skip
    assert code == 2
    assert missing in error


def test_taken_ports_are_named_with_what_to_do(
    fedot: Fedot, tmp_path: Path, pki: Path, taken: int
) -> None:
    code, error = serve(fedot, tmp_path, pki, "--listen", f"127.0.0.1:{taken}",
                        "--metrics", "127.0.0.1:0")  # fmt: skip
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{taken}" in error
    assert "--listen" in error
    code, error = serve(fedot, tmp_path, pki, "--listen", "localhost:0",
                        "--metrics", f"127.0.0.1:{taken}")  # fmt: skip
    assert code == 2
    assert "Name another --metrics" in error


def opened(tmp_path: Path, pki: Path, said: list[str]) -> Any:
    watcher = Watcher(said.append, lambda *_: None, lambda _: None, lambda _: None)
    settings = ServerSettings(tmp_path / "server", pki, "localhost:0", "127.0.0.1:0")
    return open_server(settings, watcher)


def test_home_has_one_server(fedot: Fedot, tmp_path: Path, pki: Path) -> None:
    with opened(tmp_path, pki, []):
        code, error = serve(fedot, tmp_path, pki, "--listen", "localhost:0")
        assert code == 2
        assert "another server is at work" in error
    code, _ = serve(fedot, tmp_path, pki, "--listen", "localhost:0", "--metrics", "127.0.0.1:0")
    assert code == 0


def test_server_says_at_its_start_whose_certificate_ends_soon(tmp_path: Path, pki: Path) -> None:
    from datetime import UTC, datetime, timedelta

    renew_owner(pki, None, datetime.now(UTC) - timedelta(days=360))
    said: list[str] = []
    with opened(tmp_path, pki, said):
        assert any("the server's certificate ends in" in line for line in said)


def test_person_hears_at_once_that_no_server_is_there(fedot: Fedot, pki: Path, taken: int) -> None:
    code, _, error = fedot("job", "show", "job-1", "--server", "localhost:1",
                           "--kit", pki / "nobody.kit.json")  # fmt: skip
    assert code == 2
    assert "nobody.kit.json" in error
