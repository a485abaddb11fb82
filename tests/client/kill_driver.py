"""Kills sites: forks real rounds, SIGKILLs them at random moments, and looks at what is left.

    python kill_driver.py FOLDER NUM_KILLS SEED [PLANT]

Prints one JSON object: kills by phase, rounds released, and every promise that was found broken.
torch is imported once; a site is a fork of this process, which has no threads.

A killed site starts again where the server's acknowledgements end. It does real rounds: ledger,
DP-SGD on a tiny model, store, charge, and sends into a file, piece by piece, as into a network.
PLANT is a bug: `forget` loses the ledger at a start, `charge-late` charges after sending.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fedot.client import round as client_round
from fedot.client.chains import state_chain
from fedot.client.round import Site, privacy_event, run_round
from fedot.compression.codec import encode
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.data.tokenize import Sequences
from fedot.messages import ClientInfo, RoundTask, digest_of
from fedot.models.adapters import Adapter, AdapterSpec, attach, linear_names
from fedot.privacy.accounting import epsilon_of
from fedot.privacy.ledger import Ledger

PHASES = ("start", "reserve", "train", "store", "charge", "send")
# How long a kill waits after its phase began, at most; about as long as a phase takes.
WAIT_S = {"reserve": 0.004, "train": 0.04, "store": 0.004, "charge": 0.004, "send": 0.01}
DELTA = 1e-5
MOST_ROUNDS = 1000


class World:
    """One site, and what the server has of it."""

    def __init__(self, folder: Path, plant: str | None):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        model: Any = AutoModelForCausalLM.from_config(config)
        spec = AdapterSpec("lora", (0, 1), 2, 4.0, linear_names(model, (0, 1)), seed=1)
        self.adapter: Adapter = attach(model, spec, range(2))
        ids = torch.randint(4, 64, (20, 8))
        learned = torch.ones_like(ids, dtype=torch.bool)
        info = ClientInfo("a", "data-a")
        self.site = Site(info, Sequences(ids, learned), folder / "site")
        self.wire, self.acks, self.trained = folder / "wire", folder / "acks", folder / "trained"
        for path in (self.wire, self.acks):
            path.mkdir()
        self.trained.touch()
        self.state = encode(self.adapter.state(), state_chain(PayloadConfig())).payload
        self.plant = plant
        self.phase = mmap.mmap(-1, 1)

    def task(self, number: int) -> RoundTask:
        return RoundTask(
            run_id="run",
            round=number,
            state=self.state,
            learning_rate=1e-2,
            training=TrainingConfig(steps_per_round=2, batch_size=5),
            privacy=PrivacyConfig(target_epsilon=8.0, delta=DELTA),
            payload=PayloadConfig(),
            planned_rounds={"a": MOST_ROUNDS},
        )

    def next_round(self) -> int:
        return len(list(self.acks.iterdir())) + 1

    # -- in the child --------------------------------------------------------------------------

    def live(self) -> None:
        """Do round after round until killed."""
        self.mark("start")
        if self.plant == "forget" and self.stored(self.next_round()) is None:
            self.site.ledger.path.unlink(missing_ok=True)
        self.watch(Ledger, "reserve", "reserve", "train")
        self.watch(Ledger, "charge", "charge", "charge")
        train = client_round.train_privately

        def train_and_tell(*args: Any, **named: Any) -> None:
            self.mark("train")
            stored = self.stored(self.number) is not None
            with self.trained.open("a") as log:
                log.write(f"{self.number} {stored or bool(self.sent(self.number))}\n")
            train(*args, **named)
            self.mark("store")

        client_round.train_privately = train_and_tell
        late: list[tuple[Any, ...]] = []
        if self.plant == "charge-late":
            real, Ledger.charge = Ledger.charge, lambda *args: late.append(args)  # type: ignore
        while True:
            self.number = self.next_round()
            result = run_round(self.site, self.adapter, self.task(self.number))
            self.mark("send")
            self.send(result.payload)
            if late:
                real(*late.pop())
            (self.acks / str(self.number)).touch()
            self.mark("start")

    def watch(self, owner: Any, name: str, before: str, after: str) -> None:
        """Have a real call tell which phase it is in."""
        real: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **named: Any) -> Any:
            self.mark(before)
            result = real(*args, **named)
            self.mark(after)
            return result

        setattr(owner, name, call)

    def mark(self, phase: str) -> None:
        self.phase[0] = PHASES.index(phase)

    def send(self, payload: bytes) -> None:
        with (self.wire / f"{self.number}-{os.getpid()}").open("wb", buffering=0) as wire:
            for start in range(0, len(payload), 256):
                wire.write(payload[start : start + 256])
                time.sleep(0.0005)

    # -- what is left --------------------------------------------------------------------------

    def stored(self, number: int) -> bytes | None:
        found = [p for p in self.site.folder.rglob("*.update") if p.name == f"run-{number}.update"]
        return found[0].read_bytes() if found else None

    def sent(self, number: int) -> list[bytes]:
        """What went out for a round, attempt by attempt; a killed one may be cut off."""
        attempts = (path.read_bytes() for path in self.wire.glob(f"{number}-*"))
        return [content for content in attempts if content]

    def broken(self) -> list[str]:
        """Promises that do not hold now."""
        entries = {entry.key: entry for entry in self.site.ledger.entries()}
        released = [n for n in range(1, self.next_round() + 1) if self.sent(n)]
        found = []
        for number in released:
            attempts, entry = self.sent(number), entries.get(f"run/{number}")
            longest = max(attempts, key=len)
            whole = (self.acks / str(number)).exists()
            payload = longest if whole else self.stored(number)
            if not all(longest.startswith(content) for content in attempts):
                found.append(f"round {number} was released with two payloads")
            if payload is None or not payload.startswith(longest):
                found.append(f"round {number} released what is not stored")
            elif entry is None or entry.digest != digest_of(payload):
                found.append(f"round {number} was released and is not charged")
        event = privacy_event(self.site, self.task(1))
        assert event is not None
        if self.site.ledger.epsilon("data-a", DELTA) < epsilon_of([event] * len(released), DELTA):
            found.append(f"the ledger says less than what {len(released)} released rounds cost")
        if "True" in self.trained.read_text():
            found.append("a round trained although its update was stored")
        return found


def kill_once(world: World, rng: Random, target: str | None) -> str:
    """Start a site, kill it and say in which phase it was; `crashed` if it died by itself."""
    child = os.fork()
    if child == 0:
        try:
            world.live()
        except BaseException:
            traceback.print_exc()
        os._exit(3)
    if target is None:
        time.sleep(rng.uniform(0, 0.2))
    else:
        while PHASES[world.phase[0]] != target:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return "crashed"
            time.sleep(0.0002)
        time.sleep(rng.uniform(0, WAIT_S[target]))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return PHASES[world.phase[0]] if os.WIFSIGNALED(status) else "crashed"


def main() -> None:
    folder, num_kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    world = World(folder, sys.argv[4] if len(sys.argv) > 4 else None)
    rng = Random(seed)
    kills: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    event = privacy_event(world.site, world.task(1))
    assert event is not None
    for number in range(num_kills):
        # Forks inherit what is cached: the cost of the rounds that come next.
        spent = len(world.site.ledger.entries())
        for num in range(spent, spent + 3):
            epsilon_of([event] * num, DELTA)
        world.mark("start")
        rarest = min(PHASES[1:], key=lambda phase: kills[phase])
        target = (None, rng.choice(PHASES[1:]), rarest)[number % 3]
        phase = kill_once(world, rng, target)
        kills[phase] += 1
        broken["a site died by itself"] += phase == "crashed"
        broken.update(world.broken())
        if len(sys.argv) > 4 and +broken:
            # A planted bug has been seen.
            break
    done = {"kills": kills, "broken": +broken, "released": world.next_round() - 1}
    print(json.dumps(done | {"trained": len(world.trained.read_text().splitlines())}))


if __name__ == "__main__":
    main()
