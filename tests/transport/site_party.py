"""A site and a real server over TLS, for tests of the site's loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from whole_server import RUN, Net, digest

from fedot.cards import RunCard, TaskCard
from fedot.client.chains import state_chain
from fedot.compression.codec import encode
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.emulator.manifest import bundle_digest
from fedot.engines.open_site import OpenSite, open_site
from fedot.errors import (
    FedotError,
)
from fedot.models.adapters import AdapterSpec, attach
from fedot.transport.notices import Posted

PATIENCE_S = 60.0
KEPT = (0, 2, 3)
SPEC = AdapterSpec("lora", (0, 3), 2, 4.0, ("model.layers.0.mlp.up_proj",))
PRIVATE = PrivacyConfig(unit="example", target_epsilon=4.0)


class Party:
    """A server whose owner does as the test says, and a site in this process."""

    def __init__(self, net: Net, home: Path, records: Path) -> None:
        self.net, self.home, self.records = net, home, records
        self.said: list[str] = []
        self.moved: list[tuple[str, int, int]] = []
        self.outcome: list[str | FedotError] = []
        self._threads: list[threading.Thread] = []
        self._sites: list[OpenSite] = []

    def site(self, **terms: Any) -> OpenSite:
        policy = {"dataset_id": "data-a", "max_epsilon": None, "delta": 1e-5} | terms
        path = self.home.with_name("policy.yaml")
        path.write_text(yaml.safe_dump(policy))
        site = open_site(
            self.net.where,
            self.net.folder / "pki" / "a.kit.json",
            self.net.folder / "keys" / "a.key",
            path,
            self.records,
            self.home,
            device="cpu",
        )
        self._sites.append(site)
        return site

    def joined(self, **terms: Any) -> str:
        """Take part until it is over."""
        return self.site(**terms).take_part(self.progress, self.said.append)

    def joins(self, **terms: Any) -> threading.Thread:
        """The same in a thread of its own."""

        def take_part() -> None:
            try:
                self.outcome.append(self.joined(**terms))
            except FedotError as error:
                self.outcome.append(error)

        thread = threading.Thread(target=take_part)
        self._threads.append(thread)
        thread.start()
        return thread

    def progress(self, stage: str, done: int, total: int) -> None:
        self.moved.append((stage, done, total))

    def wait_for(self, what: Callable[[], object]) -> None:
        waiting = threading.Event()
        for _ in range(int(PATIENCE_S / 0.02)):
            if what():
                return
            waiting.wait(0.02)
        raise AssertionError(f"it did not come to that; said: {self.said}, {self.outcome}")

    def close(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        for site in self._sites:
            site.__exit__(None, None, None)

    def opens(self, bundle: Path | None = None, card: str | None = None, **changes: Any) -> None:
        """Open a run whose bundle is offered file by file."""
        named = digest(b"nothing")
        if bundle is not None:
            named = bundle_digest(bundle)
            self.net.hub.shelf.put(named, {path.name: path for path in bundle.iterdir()})
            changes = {"bundle_bytes": sum(p.stat().st_size for p in bundle.iterdir())} | changes
        changes = {"bundle_digest": named} | changes
        self.net.hub.board.open_run(
            RUN, changes["bundle_digest"], {"a": card or run_card(**changes).model_dump_json()}
        )

    def posts(self, round: int, bundle: Path, **changes: Any) -> TaskCard:
        """Ask a round of the site."""
        from fedot.emulator.bundle import read_bundle

        read = read_bundle(bundle)
        adapter = attach(read.load("float32"), read.adapter, read.layer_map)
        state = encode(adapter.state(), state_chain(PayloadConfig())).payload
        path = self.net.folder / f"state-{round}"
        path.write_bytes(state)
        self.net.hub.shelf.put(digest(state), {"state": path})
        card = task_card(round, state, **changes)
        cards = {"a": card.model_dump_json()}
        self.net.hub.board.post(Posted(RUN, round, digest(state), cards))
        return card

    def reason(self) -> str:
        """What the server heard of the site's failure."""
        return next(p.reason for p in self.net.hub.board.presences() if p.site == "a")


def run_card(**changes: Any) -> RunCard:
    raw = {
        "run_id": RUN,
        "name": "a run",
        "bundle_bytes": 1,
        "adapter": "lora",
        "adapter_parameters": 100,
        "dtype": "float32",
        "max_tokens": 32,
        "rounds": 3,
        "planned_rounds": 3,
        "training": TrainingConfig(steps_per_round=2, batch_size=4),
        "privacy": PrivacyConfig(unit="none"),
        "payload": PayloadConfig(),
        "seed": 7,
    }
    return RunCard.model_validate(raw | changes)


def task_card(round: int, state: bytes, **changes: Any) -> TaskCard:
    run = run_card(bundle_digest="0" * 64)
    raw = {
        "run_id": RUN,
        "round": round,
        "state_digest": digest(state),
        "state_bytes": len(state),
        "learning_rate": 0.01,
        "training": run.training,
        "privacy": run.privacy,
        "payload": run.payload,
        "planned_rounds": 3,
        "seed": 7,
        "trains": "all",
        "state_part": "all",
    }
    return TaskCard.model_validate(raw | changes)
