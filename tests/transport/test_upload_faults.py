"""A client and the upload store while network and disk fail: seeded, without threads or waiting.

What must hold: what was committed is exactly what was sent, also after another crash; bytes that
were acknowledged are never lost; nothing is counted twice.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import pytest
from simulated_disk import Crash, SimulatedDisk

from fedot.errors import ConfigError, FedotError, TransportError
from fedot.transport.appending import Appending
from fedot.transport.binding import Binding
from fedot.transport.errors import OutOfStep, UnknownUpload
from fedot.transport.limits import Limits
from fedot.transport.retries import Retries
from fedot.transport.upload import UploadState, UploadStore

T = TypeVar("T")
NUM_SEEDS = 60
MOST_FAULTS = 25
MEMORY = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that is possible: these tests crash a disk of their own."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as made:
        yield Path(made)


class World:
    """A server with its disk, and a network that fails as often as `fault_prob` says."""

    def __init__(self, folder: Path, seed: int, fault_prob: float, lies: frozenset[str]):
        self.rng = random.Random(seed)
        self.now = 0.0
        self.disk = SimulatedDisk(folder, self.rng, lies=lies)
        self._folder, self._fault_prob = folder, fault_prob
        self._faults_left = MOST_FAULTS
        # What the network still holds and will deliver at some other time.
        self._late: list[Callable[[], object]] = []
        self.num_crashes = 0
        self.store = self._start()

    def fault(self) -> bool:
        """Does something fail here?"""
        fails = self._faults_left > 0 and self.rng.random() < self._fault_prob
        self._faults_left -= fails
        return fails

    def step(self, action: Callable[[], T]) -> T:
        """Do something at the server, which may crash in it."""
        self.disk.fail_prob = self._fault_prob / 4 if self._faults_left > 0 else 0.0
        if self.fault():
            self.disk.crash_at = self.disk.num_operations + self.rng.randrange(12)
        try:
            return action()
        except Crash:
            self.crash()
            raise TransportError("the server is gone") from None

    def call(self, action: Callable[[], T]) -> T:
        """A call over the network: it or its answer may be lost, late, or there twice."""
        self.deliver_late()
        fate = self.rng.choice(["lost", "late", "twice", "unanswered"]) if self.fault() else "well"
        if fate == "late":
            self._late.append(action)
        if fate in ("lost", "late"):
            raise TransportError(fate)
        if fate == "twice":
            self._try(action)
        answer = self.step(action)
        if fate == "unanswered":
            raise TransportError(fate)
        return answer

    def later(self, action: Callable[[], object]) -> None:
        """Something that was sent before a cut and arrives after it."""
        self._late.append(action)

    def deliver_late(self) -> None:
        """Deliver some of what is late, in any order."""
        self.rng.shuffle(self._late)
        while self._late and self.rng.random() < 0.5:
            self._try(self._late.pop())

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.deliver_late()

    def crash(self) -> None:
        """Power failure, and a new start."""
        self.num_crashes += 1
        while True:
            try:
                self.store.close()
                self.disk.crash()
                self.store = self._start()
                return
            except (Crash, ConfigError):
                continue

    def _start(self) -> UploadStore:
        return UploadStore(self._folder, Limits(), self.disk)

    def _try(self, action: Callable[[], object]) -> None:
        """Do it; nobody hears of what comes of it."""
        with contextlib.suppress(FedotError):
            self.step(action)


class Client:
    """Sends one update until it is committed."""

    def __init__(self, world: World, site: str):
        self.world, self.site = world, site
        self.payload = world.rng.randbytes(world.rng.choice([0, 1, 100, 5000, 40_000]))
        self.binding = Binding("run", 1, site, sha256(self.payload).hexdigest())
        self.acknowledged = 0
        self.is_done = False

    def run(self) -> None:
        world = self.world
        Retries(world.rng, None, world.sleep, lambda: world.now).run(
            self._attempt, lambda: self.acknowledged
        )
        self.is_done = True

    def _attempt(self) -> None:
        world, size = self.world, len(self.payload)
        state = world.call(lambda: world.store.create(self.binding, size, "{}"))
        assert state.committed_offset >= self.acknowledged, "acknowledged bytes were lost"
        try:
            if not state.is_committed:
                self._send(state)
                world.call(lambda: world.store.commit(state.upload_id, self.binding))
        except UnknownUpload as error:
            raise OutOfStep(str(error)) from error

    def _send(self, state: UploadState) -> None:
        world, offset = self.world, state.committed_offset
        if offset == len(self.payload):
            return
        stream = world.call(lambda: world.store.open(state.upload_id, self.site, offset))
        while offset < len(self.payload):
            chunk = self.payload[offset : offset + world.rng.choice([1, 700, 4096])]
            if world.fault():
                self._cut(stream, chunk)
            world.step(lambda: stream.write(chunk))  # noqa: B023 -- called at once
            offset += len(chunk)
            if offset == len(self.payload) or world.rng.random() < 0.3:
                durable = self._sync(stream)
                if not world.fault():
                    self.acknowledged = durable
        world.step(stream.end)

    def _sync(self, stream: Appending) -> int:
        try:
            return self.world.step(stream.sync)
        except TransportError:
            # A second try on the same stream must not make believe that all is well.
            self.world.later(stream.sync)
            raise

    def _cut(self, stream: Appending, chunk: bytes) -> None:
        """Cut at some byte: what is on the way may still arrive, and be made durable."""
        if self.world.rng.random() < 0.5:
            self.world.later(lambda: (stream.write(chunk), stream.sync()))
        raise TransportError("cut")


def check(world: World, clients: list[Client]) -> None:
    """Every update that is done counts once, with exactly its bytes."""
    found = {each.site: each for each in world.store.committed("run", 1)}
    assert len(found) == len(world.store.committed("run", 1))
    for client in clients:
        if client.is_done:
            assert client.site in found, "a committed update was lost"
    for client in clients:
        if client.site in found:
            assert found[client.site].path.read_bytes() == client.payload, "not what was sent"


def simulate(folder: Path, seed: int, fault_prob: float, lies: frozenset[str]) -> World:
    """Two sites after one another, a power failure at the end."""
    world = World(folder, seed, fault_prob, lies)
    try:
        clients = [Client(world, f"site-{n}") for n in range(2)]
        for client in clients:
            client.run()
            check(world, clients)
        world.crash()
        check(world, clients)
        for _ in range(10):
            world.deliver_late()
        check(world, clients)
        return world
    finally:
        world.store.close()


NO_LIES: frozenset[str] = frozenset()


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_nothing_is_lost_or_counted_twice_whatever_fails(folder: Path, seed: int) -> None:
    simulate(folder, seed, fault_prob=0.15, lies=NO_LIES)


def test_the_faults_do_happen(folder: Path) -> None:
    crashes = [simulate(folder / str(n), n, 0.15, NO_LIES).num_crashes for n in range(10)]
    assert sum(crashes) > 20


@pytest.mark.parametrize("lie", ["fdatasync", "sync_folder"])
def test_a_store_without_one_of_its_syncs_would_be_found_out(folder: Path, lie: str) -> None:
    caught = 0
    # One in four is enough to say that it was no accident.
    for seed in range(20):
        try:
            simulate(folder / str(seed), seed, 0.15, frozenset({lie}))
        except (AssertionError, FedotError):
            caught += 1
    assert caught >= 5


def one_upload(world: World) -> Client:
    client = Client(world, "site-0")
    client.payload = random.Random(1).randbytes(9000)
    client.binding = Binding("run", 1, "site-0", sha256(client.payload).hexdigest())
    client.run()
    return client


def test_a_crash_at_any_operation_loses_nothing(folder: Path) -> None:
    calm = World(folder / "calm", 1, 0.0, NO_LIES)
    one_upload(calm)
    calm.store.close()
    assert calm.disk.num_operations > 15
    for number in range(calm.disk.num_operations):
        world = World(folder / str(number), number, 0.0, NO_LIES)
        world.disk.crash_at = max(number, world.disk.num_operations)
        client = one_upload(world)
        world.crash()
        check(world, [client])
        world.store.close()
