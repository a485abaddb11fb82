"""Kills a server between two durable steps, resumes it, and compares with an undisturbed run.

    python kill_driver.py CONFIG.json FOLDER NUM_KILLS [PLANT]

Prints one JSON object: kills by step, and what differed after the resumed run's end. Every process
is a fork of this one, killed with SIGKILL right before or after the n-th step that writes anything:
a file put in place or synced, a row of the journal, a line of a ledger. Noise is seeded, so that
bits can be compared. PLANT is a bug: `unsettled` asks again who did not answer before the kill.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedot.client.round import round_event
from fedot.config import config_from_dict
from fedot.errors import RunStopped
from fedot.federation import loop
from fedot.federation.cohort import most_rounds
from fedot.federation.parts import load_parts
from fedot.federation.server_noise import client_event
from fedot.journal import Journal
from fedot.privacy.ledger import Ledger
from fedot.privacy.noise import NoiseSource

STEPS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "replace"),
    (Journal, "note"),
    (Journal, "accept"),
    (Journal, "close_round"),
    (Ledger, "reserve"),
    (Ledger, "charge"),
]


def federation_of(config: Any, home: Path) -> Any:
    spec = importlib.util.spec_from_file_location("sites", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    federation = module.Federation(config, home, lambda answer: answer)
    out = federation.out

    def change(answer: Any) -> Any:
        # Silent once: after a restart it would answer, and must not count any more.
        again = (out / "restarted").exists()
        return answer if again or (answer.client, answer.round) != ("client-1", 2) else None

    federation.change = change
    return federation


def run(config: Any, home: Path, **more: Any) -> None:
    federation_of(config, home).run(make_noise=lambda: NoiseSource(bytes(32)), **more)


def forked(work: Callable[[], None]) -> int:
    """Its exit status: 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_steps(on_step: Callable[[str], None]) -> None:
    """Have `on_step` called right before and right after everything that writes."""

    def watch(owner: Any, name: str) -> None:
        original, label = getattr(owner, name), f"{owner.__name__}.{name}"

        def step(*args: Any, **kwargs: Any) -> Any:
            on_step(f"before {label}")
            result = original(*args, **kwargs)
            on_step(f"after {label}")
            return result

        setattr(owner, name, step)

    for owner, name in STEPS:
        watch(owner, name)


def counted(config: Any, home: Path, to: Path) -> None:
    seen: list[str] = []
    count_steps(seen.append)
    run(config, home)
    to.write_text(json.dumps(seen))


def killed(config: Any, home: Path, at: int) -> None:
    left = at

    def die(label: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    count_steps(die)
    run(config, home)


def resumed(config: Any, home: Path, plant: str) -> None:
    (home / "run" / "restarted").touch()
    if plant == "unsettled":
        loop.answers_of = lambda journal, task: None  # type: ignore[attr-defined]
    run(config, home)


def traces(home: Path) -> dict[str, Any]:
    """Everything that must be as if nobody had been killed."""
    found: dict[str, Any] = {}
    for folder in ("adapter", "adapter-best"):
        found[folder] = (home / "run" / folder / "adapter_model.safetensors").read_bytes().hex()
    with Journal(home / "run" / "journal.sqlite") as journal:
        rounds = range(journal.last_closed() + 1)
        found["states"] = [journal.state(round).hex() for round in rounds]
        found["lines"] = [{**line, "seconds": 0} for line in journal.metrics()]
    for path in sorted(home.rglob("ledger.jsonl")):
        # A reservation and a charge a round, each once.
        found[str(path.relative_to(home))] = len(path.read_text().splitlines())
    return found


def was_settled(home: Path) -> bool:
    """Had the round with a silent site been settled when the server was killed?"""
    with Journal(home / "run" / "journal.sqlite") as journal:
        return journal.fact("answers/2") is not None


def warm_up(config: Any) -> None:
    """Import and work out once what every run needs."""
    parts = load_parts(config)
    client_event(config)
    for name, num_rounds in most_rounds(config, list(parts.train)).items():
        round_event(config.training, config.privacy, len(parts.train[name]), num_rounds)


def prepared(config: Any, home: Path) -> None:
    """Up to round 0, which is the same for all."""
    try:
        run(config, home, should_stop=lambda: "ready")
    except RunStopped:
        return


def main(config_file: Path, folder: Path, num_kills: int, plant: str = "") -> None:
    config = config_from_dict(json.loads(config_file.read_text()))
    start, silent, full = folder / "start", folder / "silent", folder / "full"
    # Here, so that every fork has what takes long: libraries and calibrated noise.
    warm_up(config)
    assert forked(lambda: prepared(config, start)) == 0
    shutil.copytree(start, silent)
    assert forked(lambda: counted(config, silent, folder / "steps.json")) == 0
    shutil.copytree(start, full)
    assert forked(lambda: resumed(config, full, "")) == 0
    steps, undisturbed = json.loads((folder / "steps.json").read_text()), traces(silent)
    everybody = traces(full)
    assert undisturbed["adapter"] != everybody["adapter"]
    kills: Counter[str] = Counter()
    broken: dict[str, list[str]] = {}
    for number in range(num_kills):
        at = number * len(steps) // num_kills
        home = folder / "cut"
        shutil.copytree(start, home)
        status = forked(lambda at=at, home=home: killed(config, home, at))  # type: ignore[misc]
        assert status == -signal.SIGKILL, status
        kills[steps[at]] += 1
        # Before that a site may still answer; after it, it is too late for good.
        wanted = undisturbed if was_settled(home) else everybody
        assert forked(lambda home=home: resumed(config, home, plant)) == 0  # type: ignore[misc]
        got = traces(home)
        odd = [key for key in wanted.keys() | got.keys() if wanted.get(key) != got.get(key)]
        if odd:
            broken[f"{at} {steps[at]}"] = sorted(odd)
        shutil.rmtree(home)
    print(json.dumps({"steps": len(steps), "kills": kills, "broken": broken}))


if __name__ == "__main__":
    config_file, folder, num_kills, *rest = sys.argv[1:]
    main(Path(config_file), Path(folder), int(num_kills), *rest)
