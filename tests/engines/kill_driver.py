"""Kills a federation: forks a server and sites, SIGKILLs them at random, and looks at the result.

    python kill_driver.py FOLDER --kills 60 --each 5 --json OUT
    python kill_driver.py FOLDER --minutes 30 --json OUT
    python kill_driver.py FOLDER --plants --json OUT

Runs federations one after the other, without and with DP in turn, and kills server or sites about
a dozen times in each, until there were so many kills or minutes. Prints, and writes to OUT, one
JSON object: kills by phase, federations finished, and every promise that was found broken.

Every process is a fork of this one, which has no threads and never opens a channel: torch is
imported once. What a kill is counted under is the phase in which the process really died.
With `--plants` the children run with bugs (`kill_plants.py`), one after the other, until each is
seen; `seen` says by what.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from random import Random
from typing import Any

import torch
from kill_checks import broken_in, traces, witnessed
from kill_plants import PLANTS
from kill_world import (
    PHASES,
    SITES,
    Watched,
    make_config,
    prepare_home,
    serve,
    take_part,
    write_inputs,
)
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from fedot.client.round import round_event
from fedot.federation.cohort import most_rounds
from fedot.federation.parts import load_parts

SERVER = "server"
NAMES = (SERVER, *SITES)
# How long a kill waits after its phase began, at most: about as long as the phase takes.
WAIT_S = {"train": 0.06, "upload": 0.03, "download": 0.03}
SHORT_WAIT_S = 0.015
# A phase that does not come any more in this federation is given up.
PATIENCE_S = 4.0
# A federation in which nothing at all happens for so long hangs.
HANGS_S = 90.0
TICK_S = 0.0004


@dataclass
class Tally:
    """What has been seen so far."""

    kills: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    witnessed: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    begun: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "kills": dict(self.kills),
            "victims": dict(self.victims),
            "begun": self.begun,
            "finished": self.finished,
            "broken": dict(self.broken),
            "witnessed": dict(self.witnessed),
        }


class Federation:
    """One federation's processes.

    Args:
        home: with keys, and a server that is ready for the first round.
        plant: name of a bug, or nothing.
    """

    def __init__(self, home: Path, plant: str = ""):
        self.home, self.plant, self.port = home, plant, free_port()
        self.phases = mmap(-1, len(NAMES) * len(PHASES))
        self.running: dict[str, int] = {}
        self.ended: set[str] = set()
        self.odd: list[str] = []
        for name in NAMES:
            self.start(name)

    def start(self, name: str) -> None:
        slot = NAMES.index(name)
        first = slot * len(PHASES)
        self.phases[first : first + len(PHASES)] = bytes(len(PHASES))
        watched = Watched(self.phases, slot, self.home)

        def work() -> None:
            is_server = name == SERVER
            if self.plant:
                PLANTS[self.plant].install(is_server, self.home)
            if is_server:
                watched.server()
                serve(self.home, self.port)
            else:
                watched.site()
                take_part(self.home, name, self.port)

        self.running[name] = forked(work, self.home / f"{name}.log")

    def inside(self, name: str) -> list[str]:
        """The phases that a process is in."""
        first = NAMES.index(name) * len(PHASES)
        here = self.phases[first : first + len(PHASES)]
        return [p for p, num in zip(PHASES, here, strict=True) if num]

    def reap(self) -> None:
        """Notice who has ended by itself; once all sites have, the server may."""
        for name, pid in list(self.running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self.running[name]
                self.ended.add(name)
                # Told to stop before it could listen to that.
                is_told = name == SERVER and self.ended.issuperset(SITES)
                if status and not (is_told and os.WTERMSIG(status) == signal.SIGTERM):
                    self.odd.append(f"{'server' if name == SERVER else 'a site'} died by itself")
        if SERVER in self.ended:
            self.let_go()
        if self.ended.issuperset(SITES) and SERVER in self.running:
            os.kill(self.running[SERVER], signal.SIGTERM)
            time.sleep(0.05)

    def let_go(self) -> None:
        """End sites that had told the server, and so let it end, when they were killed."""
        for name in sorted(self.running.keys() & set(SITES)):
            if not (self.home / name / "site" / "run").exists():
                os.kill(self.running[name], signal.SIGKILL)
                os.waitpid(self.running.pop(name), 0)
                self.ended.add(name)

    @property
    def is_over(self) -> bool:
        return bool(self.odd) or not self.running

    def kill(self, name: str, tally: Tally, target: str) -> None:
        pid = self.running.pop(name)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        inside = self.inside(name)
        if not os.WIFSIGNALED(status):
            # It came to its end first.
            self.ended.add(name)
            return
        phase = target if target in inside else (inside or ["other"])[0]
        tally.kills[phase] += 1
        tally.victims[f"{name} in {phase}"] += 1

    def end(self) -> None:
        """Let go of everything."""
        for pid in self.running.values():
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.2)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.running.clear()


def free_port() -> int:
    """Below those that outgoing connections take, so that none is in the way of a restart."""
    while True:
        port = 20000 + int.from_bytes(os.urandom(2), "big") % 12000
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def forked(work: Callable[[], None], log: Path) -> int:
    """A child's process id; it runs `work` and ends."""
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of threads is no process of its own"
    child = os.fork()
    if child:
        return child
    try:
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def wait_for(pid: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "see the log in the folder"


def disturb(
    federation: Federation, rng: Random, tally: Tally, num_kills: int, wish: Callable[[Tally], str]
) -> None:
    """Kill so many times, then let it come to its end.

    Args:
        wish: given the tally, the phase to kill in next; nothing: any time, anybody.
    """
    left, moved, size, trace = num_kills, time.monotonic(), 0, federation.home / "trace.jsonl"
    target, since, pause = wish(tally), time.monotonic(), rng.uniform(0, 1)
    # An upload has two sides, and a site is in it first.
    victims_of = rng.choice(((SERVER,), NAMES))
    while not federation.is_over:
        time.sleep(TICK_S if left else 0.02)
        federation.reap()
        now = time.monotonic()
        if trace.exists() and trace.stat().st_size != size:
            size, moved = trace.stat().st_size, now
        if now - moved > HANGS_S:
            federation.odd.append("the federation hangs")
        if not left:
            continue
        allowed = federation.running.keys() & (victims_of if target == "upload" else NAMES)
        ready = sorted(name for name in allowed if target in federation.inside(name))
        if not target and now - since > pause:
            ready = list(federation.running)
        if ready:
            if target:
                time.sleep(rng.uniform(0, WAIT_S.get(target, SHORT_WAIT_S)))
            victims = {rng.choice(ready)}
            if rng.random() < 0.15:
                victims.add(rng.choice(NAMES))
            victims &= federation.running.keys()
            for name in victims:
                federation.kill(name, tally, target)
            # Sometimes the others have to do without it for a while.
            time.sleep(rng.choice((0, 0, 0, rng.uniform(0, 0.5))))
            for name in victims - federation.ended:
                federation.start(name)
            left, moved = max(0, left - len(victims)), now
        if ready or now - since > PATIENCE_S:
            target, since, pause = wish(tally), time.monotonic(), rng.uniform(0, 1)
            victims_of = rng.choice(((SERVER,), NAMES))


def warm_up(config: Any) -> None:
    """Import and work out once what every process needs."""
    # A progress bar leaves a thread behind, and a fork must not have lost one.
    tqdm.monitor_interval = 0
    disable_progress_bar()
    parts = load_parts(config)
    for name, num_rounds in most_rounds(config, list(parts.train)).items():
        if config.privacy.protects_records:
            round_event(config.training, config.privacy, len(parts.train[name]), num_rounds)


@dataclass
class Ground:
    """What federations of one kind start from, and what an undisturbed one makes."""

    config: Any
    start: Path
    wanted: dict[str, Any]


def break_ground(folder: Path, unit: str) -> Ground:
    config = make_config(folder, unit)
    warm_up(config)
    place = folder / unit
    place.mkdir()
    start, quiet = place / "start", place / "undisturbed"
    wait_for(forked(lambda: prepare_home(config, start), place / "start.log"))
    shutil.copytree(start, quiet)
    federation = Federation(quiet)
    disturb(federation, Random(0), Tally(), 0, lambda tally: "")
    federation.end()
    odd = federation.odd + broken_in(quiet, config, {})
    assert not odd, odd
    return Ground(config, start, traces(quiet))


def one_run(ground: Ground, rng: Random, tally: Tally, kills: int, plant: str = "") -> None:
    home = ground.start.with_name(f"run-{plant}{tally.begun}")
    shutil.copytree(ground.start, home)
    tally.begun += 1

    def wish(tally: Tally) -> str:
        if plant:
            return rng.choice(PLANTS[plant].phases)
        rarest = min(PHASES, key=lambda phase: tally.kills[phase])
        return rng.choice((rarest, rarest, rng.choice(PHASES), ""))

    federation = Federation(home, plant)
    disturb(federation, rng, tally, kills, wish)
    federation.end()
    found = federation.odd or broken_in(home, ground.config, ground.wanted)
    tally.broken.update(found)
    tally.witnessed += witnessed(home)
    tally.finished += not federation.odd
    if not found:
        shutil.rmtree(home)


def kill(grounds: dict[str, Ground], options: argparse.Namespace) -> dict[str, Any]:
    """Until there were so many kills, so many in each phase, and so many minutes."""
    rng, tally, began = Random(options.seed), Tally(), time.monotonic()
    while (
        not tally.begun
        or sum(tally.kills.values()) < options.kills
        or min(tally.kills[phase] for phase in PHASES) < options.each
        # Nothing would be shown of what restarts found there already.
        or (options.each and len(tally.witnessed) < 2)
        or time.monotonic() - began < options.minutes * 60
    ):
        ground = list(grounds.values())[tally.begun % len(grounds)]
        one_run(ground, rng, tally, options.per_run)
    return tally.as_json()


def plant(grounds: dict[str, Ground], options: argparse.Namespace) -> dict[str, Any]:
    """Every bug, in at most five federations."""
    rng, seen = Random(options.seed), {}
    for name, bug in PLANTS.items():
        tally = Tally()
        while tally.begun < 5 and not tally.broken:
            one_run(grounds[bug.unit], rng, tally, 6, name)
        seen[name] = sorted(tally.broken)
    return {"seen": seen}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one; what went wrong stays in it")
    parser.add_argument("--kills", type=int, default=0, help="at least so many, then end")
    parser.add_argument("--each", type=int, default=0, help="at least so many in each phase")
    parser.add_argument("--minutes", type=float, default=0.0, help="at least so long, then end")
    parser.add_argument("--per-run", type=int, default=15, help="kills in one federation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plants", action="store_true", help="see every planted bug instead")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    os.environ.update({**quiet, "no_proxy": "localhost"})
    torch.set_num_threads(1)
    began, folder = time.monotonic(), options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wait_for(forked(lambda: write_inputs(folder), folder / "inputs.log"))
    grounds = {unit: break_ground(folder, unit) for unit in ("none", "example")}
    done = plant(grounds, options) if options.plants else kill(grounds, options)
    done["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(done))
    if options.json:
        options.json.write_text(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
