"""A federation over the network on one machine: a server, its sites, each a process of its own.

Nothing is simulated: certificates are made and signed, TLS is checked on both sides, every site has
a folder, a ledger and a policy that the others and the server do not read.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from fedot.config import Config, to_yaml
from fedot.errors import ConfigError, TransportError
from fedot.journal import write_durably
from fedot.privacy.policy import load_policy
from fedot.seeds import derive_seed
from fedot.transport.identity import init_owner, request_certificate, sign_request

__all__ = ["Rehearsal", "prepare", "rehearse"]

Say = Callable[[str, str], None]
"""Told who says something, and what: one line."""

# How long a site may take to stop after the server has.
_GRACE_S = 60.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A folder with everything that the processes need.

    Attributes:
        sites: by name, what its `fedot join` is started with.
    """

    folder: Path
    server: Sequence[str]
    sites: Mapping[str, Sequence[str]]

    @property
    def job(self) -> Path:
        """The run's folder at the server, once it has begun."""
        runs = (self.folder / "server" / "jobs").glob("*/run")
        return max(runs, key=lambda run: run.stat().st_mtime)


def prepare(
    config: Config, num_sites: int | None, folder: Path, job_name: str = "rehearsal"
) -> Rehearsal:
    """Make keys, policies and the server's config; one that is there is taken up again.

    Args:
        config: as for a simulation: `data.clients` says which site has which file.
        num_sites: the first so many clients; None takes all.
        folder: everything is written here.
        job_name: what the job and its report are called.

    Raises:
        ConfigError: there are fewer clients than that, or the folder holds another rehearsal.
    """
    names = sorted(config.data.clients)
    if num_sites is not None and not 1 <= num_sites <= len(names):
        raise ConfigError(
            f"--sites is {num_sites} and data.clients has {len(names)}; every site needs a file of "
            "its own. Ask for fewer, or add clients."
        )
    names = names[:num_sites]
    pki, servers = folder / "pki", folder / "config.yaml"
    # The name too: the same config under another one would be another job, and spend budgets again.
    text = f"# Rehearsal of {job_name!r}\n{_server_config(config, names)}"
    if not servers.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not pki.exists():
            init_owner(pki, "fedot poc", ["localhost"])
        for name in names:
            home = folder / name
            asked = request_certificate(name, home)
            kit = sign_request(pki, asked.csr_path, asked.fingerprint, "site", 90)
            shutil.copy(kit, home / "kit.json")
            _write_policy(config, name, home / "policy.yaml")
        # The last one: a folder without it was not finished.
        write_durably(servers, text.encode())
    elif servers.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{folder} holds a rehearsal of another config; use that one, or name another --out."
        )
    where = f"localhost:{_free_port()}"
    server = ["serve", str(folder / "config.yaml"), "--home", str(folder / "server")]
    server += ["--pki", str(pki), "--listen", where, "--until-done", "--metrics", "127.0.0.1:0"]
    server += ["--name", job_name]
    return Rehearsal(folder, server, {name: _join(config, name, folder, where) for name in names})


def rehearse(rehearsal: Rehearsal, say: Say) -> Path:
    """Run all processes until the server has done its job.

    Returns:
        The run's folder at the server.

    Raises:
        TransportError: the server, or a site that it waits for, ended without having finished.
    """
    with ExitStack() as stack:
        server = stack.enter_context(_process("server", rehearsal.server, say))
        sites = [
            stack.enter_context(_process(name, arguments, say))
            for name, arguments in rehearsal.sites.items()
        ]
        code = _first_end(server, sites)
        for site in sites if code == 0 else []:
            with suppress(subprocess.TimeoutExpired):
                site.wait(_GRACE_S)
    if code != 0:
        raise TransportError(
            f"a process ended with exit code {code}; what it said stands above. What was finished "
            "is kept: the same command goes on with it."
        )
    return rehearsal.job


def _first_end(server: subprocess.Popen[str], sites: Sequence[subprocess.Popen[str]]) -> int | None:
    """The exit code of the server, or of a site that gave up: nobody starts it again here."""
    while server.poll() is None:
        failed = [site.returncode for site in sites if site.poll()]
        if failed:
            return failed[0]
        with suppress(subprocess.TimeoutExpired):
            server.wait(_LOOK_S)
    return server.returncode


def _write_policy(config: Config, name: str, path: Path) -> None:
    """The site's own policy, or one that allows just this run."""
    given = config.data.policies.get(name)
    private = config.privacy.protects_records
    terms = {
        "dataset_id": name,
        "max_epsilon": config.privacy.target_epsilon if private else None,
        "delta": config.privacy.delta,
    }
    if given is not None:
        terms = load_policy(Path(given)).model_dump()
    # The same records train as in a simulation, so that both can be compared.
    terms["held_out_ratio"] = config.data.held_out_ratio
    terms["held_out_seed"] = derive_seed(config.seed, "split", name)
    path.write_text(yaml.safe_dump(terms, sort_keys=False), encoding="utf-8")


def _server_config(config: Config, names: Sequence[str]) -> str:
    """The server's: it knows who takes part, and nothing of their files."""
    data = config.data.model_copy(update={"clients": {}, "policies": {}})
    network = config.network.model_copy(update={"sites": list(names)})
    return to_yaml(config.model_copy(update={"data": data, "network": network}))


def _join(config: Config, name: str, folder: Path, where: str) -> list[str]:
    home = folder / name
    return [
        *("join", where, "--policy", str(home / "policy.yaml")),
        *("--data", config.data.clients[name], "--text-field", config.data.text_field),
        *("--kit", str(home / "kit.json"), "--key", str(home / f"{name}.key")),
        *("--home", str(home / "site")),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(name: str, arguments: Sequence[str], say: Say) -> Iterator[subprocess.Popen[str]]:
    """A `fedot` of its own; what it prints is said, and it is gone at the end."""
    command = [sys.executable, "-m", "fedot.cli", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()
    )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            say(name, line.rstrip())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_GRACE_S / 6)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        reader.join()
        if process.stdout is not None:
            process.stdout.close()


def _environment() -> dict[str, str]:
    """Processes on one machine share its cores."""
    return {"OMP_NUM_THREADS": "1", **os.environ}
