"""A site whose machine stops before any of its calls to the file system, and starts again.

After every crash: what was released is charged, its cost is in the ledger, no round has two
updates, and no round trains again once its update was stored. SIGKILL cannot show that an fsync is
needed, because the page cache survives it (`test_kills.py`); here what was not synced is gone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedot.client import round as client_round
from fedot.client.chains import state_chain
from fedot.client.round import Site, run_round
from fedot.compression.codec import encode
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.data.tokenize import Sequences
from fedot.errors import FedotError
from fedot.messages import ClientInfo, ClientResult, RoundTask, digest_of
from fedot.models.adapters import Adapter, AdapterSpec, attach, linear_names
from fedot.privacy.accounting import epsilon_of
from fedot.privacy.ledger import Ledger


def crash_disk() -> Any:
    """The file beside this one; tests are no package."""
    spec = importlib.util.spec_from_file_location(
        "crash_disk", Path(__file__).with_name("crash_disk.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


DISK = crash_disk()
Crashed, Survives = DISK.Crashed, DISK.Survives
Crash = tuple[int, Any]
Line = tuple[str, int]
PAYLOAD = PayloadConfig()
DELTA = 1e-5


class Broken(AssertionError):
    """A promise of the round was broken."""


class World:
    """One site on a disk that can crash, and what the network has seen of it."""

    def __init__(self, disk: Any, adapter: Adapter, num_rounds: int):
        self.disk, self.adapter, self.num_rounds = disk, adapter, num_rounds
        ids = torch.zeros((20, 10), dtype=torch.long)
        records = Sequences(ids, torch.ones_like(ids, dtype=torch.bool))
        self.site = Site(ClientInfo("a", "data-a"), records, disk.root / "sites" / "a")
        self.start = adapter.state()
        self.released: dict[str, bytes] = {}
        self.acknowledged = 0
        self.task: RoundTask | None = None

    def task_of(self, number: int) -> RoundTask:
        return RoundTask(
            run_id="run",
            round=number,
            state=encode(self.start, state_chain(PAYLOAD)).payload,
            learning_rate=1e-2,
            training=TrainingConfig(steps_per_round=2, batch_size=5),
            privacy=PrivacyConfig(target_epsilon=8.0, delta=DELTA),
            payload=PAYLOAD,
            planned_rounds={"a": 2},
        )

    def live(self) -> None:
        """Do all rounds that the server has not acknowledged."""
        while self.acknowledged < self.num_rounds:
            self.task = self.task_of(self.acknowledged + 1)
            self.send(run_round(self.site, self.adapter, self.task))
            # Between sending and the server's answer.
            self.disk.call()
            self.acknowledged += 1

    def train(self, adapter: Adapter, *_: Any) -> None:
        """Stands for DP-SGD: another result each time, as with real noise."""
        assert self.task is not None
        if self.task.task_id in self.released or self.updates():
            raise Broken(f"{self.task.task_id} trains although its update was stored")
        ledger = self.disk.lost(self.site.ledger.path) or b""
        if f'"reserve": "{self.task.task_id}"'.encode() not in ledger:
            raise Broken("training before the reservation is on disk")
        for parameter in adapter.parameters.values():
            drawn = torch.frombuffer(bytearray(os.urandom(parameter.numel())), dtype=torch.uint8)
            parameter.data.add_(drawn.view(parameter.shape).float())

    def updates(self) -> list[Path]:
        name = f"{self.task.run_id}-{self.task.round}.update" if self.task else ""
        return [path for path in self.site.folder.rglob("*.update") if path.name == name]

    def send(self, result: ClientResult) -> None:
        key = f"run/{result.round}"
        ledger = self.disk.lost(self.site.ledger.path) or b""
        if f'"charge": "{key}", "digest": "{result.digest}"'.encode() not in ledger:
            raise Broken("sending before the charge is on disk")
        if [self.disk.lost(path) for path in self.updates()] != [result.payload]:
            raise Broken("sending what is not on disk")
        if self.released.setdefault(key, result.payload) != result.payload:
            raise Broken(f"{key} was released twice")
        self.check()

    def check(self) -> None:
        """What must hold whenever the machine is up."""
        entries = {entry.key: entry for entry in Ledger(self.site.ledger.path).entries()}
        for key, payload in self.released.items():
            if key not in entries or entries[key].digest != digest_of(payload):
                raise Broken(f"{key} was released and is not charged")
        spent = epsilon_of([entry.event for entry in entries.values()], DELTA)
        if spent < epsilon_of([entries[key].event for key in self.released], DELTA):
            raise Broken("the ledger says less than what was released")


@pytest.fixture
def adapter(tiny_llama: Any) -> Adapter:
    spec = AdapterSpec("lora", (0,), 1, 2.0, linear_names(tiny_llama, (0,))[:1], seed=1)
    return attach(tiny_llama, spec, range(4))


NewWorld = Callable[..., World]


@pytest.fixture
def new_world(adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewWorld:
    start = adapter.state()
    made = 0

    def make(num_rounds: int) -> World:
        nonlocal made
        made += 1
        adapter.load(start)
        world = World(DISK.CrashDisk(tmp_path / str(made)), adapter, num_rounds)
        monkeypatch.setattr(client_round, "train_privately", world.train)
        return world

    return make


def journey(world: World, crashes: list[Crash]) -> bool:
    """Live through some crashes, one after the other, and to the end; False if one never came."""
    came = True
    for number, survives in crashes:
        world.disk.crash_at = number
        try:
            with world.disk.in_place():
                world.live()
            came = False
        except Crashed:
            pass
        world.disk.restart(survives)
        world.check()
    with world.disk.in_place():
        world.live()
    world.check()
    if len(world.released) != world.num_rounds:
        raise Broken("a round was never released")
    return came


def single_crashes(num_calls: int) -> Iterator[list[Crash]]:
    for number in range(1, num_calls + 1):
        for survives in Survives:
            yield [(number, survives)]


def kills_then_power(num_calls: int) -> Iterator[list[Crash]]:
    for killed in range(1, num_calls + 1):
        for number in range(1, num_calls + 1):
            yield [(killed, Survives.ALL), (number, Survives.SYNCED)]


def calls_of(world: World) -> int:
    """How many calls a life without a crash makes."""
    with world.disk.in_place():
        world.live()
    assert len(world.released) == world.num_rounds
    return world.disk.calls


def test_no_crash_breaks_a_promise(new_world: NewWorld) -> None:
    num_calls = calls_of(new_world(2))
    assert num_calls > 40
    for crashes in single_crashes(num_calls):
        assert journey(new_world(2), crashes), crashes


@pytest.mark.slow
def test_no_kill_followed_by_a_power_cut_breaks_a_promise(new_world: NewWorld) -> None:
    num_calls = calls_of(new_world(1))
    came = sum(journey(new_world(1), crashes) for crashes in kills_then_power(num_calls))
    assert came > num_calls**2 / 3


def sync_sites(new_world: NewWorld) -> set[Line]:
    """Every line that syncs, on the straight way or after a kill."""
    sites: set[Line] = set()
    num_calls = calls_of(new_world(1))
    for number in range(1, num_calls + 1):
        world = new_world(1)
        journey(world, [(number, Survives.ALL)])
        sites |= world.disk.syncs
    return sites


@pytest.mark.slow
def test_every_fsync_is_needed(new_world: NewWorld) -> None:
    """Without any one of them, some crash breaks a promise: so the check above can fail."""
    sites = sync_sites(new_world)
    assert {name for name, _ in sites} == {"ledger.py", "journal.py", "outbox.py"}
    assert len(sites) == 9
    num_calls = calls_of(new_world(1))
    assert not [site for site in sorted(sites) if not caught(new_world, site, num_calls)]


def caught(new_world: NewWorld, site: Line, num_calls: int) -> bool:
    for crashes in (*single_crashes(num_calls), *kills_then_power(num_calls)):
        world = new_world(1)
        world.disk.ignored_sync = site
        try:
            journey(world, crashes)
        except (Broken, FedotError, ValueError, OSError):
            return True
    return False
