"""A tiny federation for kill tests: a model, records, keys, and what its processes run.

Server and sites are the real ones. What is added from outside only tells: which phase a process is
in (a byte in shared memory), and a line in `trace.jsonl` for what must never happen twice.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Any

from fedot.client import round as client_round
from fedot.client.outbox import Outbox
from fedot.config import Config, config_from_dict
from fedot.engines import join
from fedot.engines.open_site import open_site
from fedot.engines.remote import RemoteEngine
from fedot.federation import loop
from fedot.federation.open_server import ServerSettings, open_server
from fedot.federation.serve import Server, Watcher
from fedot.journal import Journal
from fedot.messages import no_progress
from fedot.privacy.ledger import Ledger
from fedot.studies.poc import prepare
from fedot.transport.bulk import Bulk
from fedot.transport.channel import Channel
from fedot.transport.upload import UploadStore

PHASES = ("download", "train", "store", "upload", "aggregate", "commit", "broadcast")
SITES = ("site-a", "site-b")
ROUNDS = 4
Traced = Callable[..., None]


def write_inputs(folder: Path) -> None:
    """A model with its tokenizer, and everybody's records."""
    made = _conftest()
    made.a_model("llama").save_pretrained(folder / "checkpoint")
    _tokenizer(made.some_texts(40, seed=0)).save_pretrained(folder / "checkpoint")
    for seed, name in enumerate((*SITES, "proxy"), start=1):
        rows = (json.dumps({"text": text}) for text in made.some_texts(24, seed))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")


def make_config(folder: Path, unit: str) -> Config:
    """Two sites, four rounds, of what `write_inputs` wrote; `unit` is none or example."""
    return config_from_dict(
        {
            "model": {"path": str(folder / "checkpoint"), "device": "cpu"},
            "data": {
                "clients": {name: str(folder / f"{name}.jsonl") for name in SITES},
                "proxy": str(folder / "proxy.jsonl"),
                "max_tokens": 32,
            },
            "adapter": {"kind": "lora", "rank": 4, "alpha": 4, "blocks": "all"},
            "emulator": "none",
            "training": {"steps_per_round": 3, "batch_size": 8},
            "privacy": {"unit": unit},
            "federation": {"rounds": ROUNDS},
            "evaluation": {"ceiling_learning_rates": []},
            "seed": 7,
        }
    )


def prepare_home(config: Config, home: Path) -> None:
    """Keys, kits and policies, and a server with the job in its queue and round 0 closed."""
    prepare(config, None, home)

    def enough(server: Server, *_: Any) -> Any:
        os._exit(0)

    Server._open_engine = enough  # type: ignore[method-assign]
    with open_server(_settings(home, 0), _watcher()) as server:
        server.submit_once("kills", (home / "config.yaml").read_text(), "owner")
        server.work(until_done=True)


def serve(home: Path, port: int) -> None:
    """Be the server until its job is done and everybody knows."""
    with open_server(_settings(home, port), _watcher()) as server:
        signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
        if not server.work(until_done=True):
            raise SystemExit("the job did not end well")


def take_part(home: Path, name: str, port: int) -> None:
    """Be one site until the run is over."""
    mine, data = home / name, home.parent.parent / f"{name}.jsonl"
    with open_site(
        f"localhost:{port}", mine / "kit.json", None, mine / "policy.yaml", data, mine / "site"
    ) as site:
        print(site.take_part(no_progress, lambda line: print(line, flush=True)), flush=True)


class Watched:
    """What a process tells of itself while it runs real code.

    Args:
        phases: shared with the driver, a byte for every phase: how many threads are in it.
        home: of the federation.
    """

    def __init__(self, phases: mmap, slot: int, home: Path):
        self._phases, self._first, self._home = phases, slot * len(PHASES), home
        self._guard = threading.Lock()

    def trace(self, what: str, **facts: Any) -> None:
        """One line, whole or not at all."""
        line = json.dumps({"what": what, **facts}) + "\n"
        file = os.open(self._home / "trace.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Be in a phase."""
        at = self._first + PHASES.index(phase)
        with self._guard:
            self._phases[at] += 1
        try:
            yield
        finally:
            with self._guard:
                self._phases[at] -= 1

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Have a call say in which phase it is."""
        real = getattr(owner, name)

        def call(*args: Any, **named: Any) -> Any:
            with self.during(phase):
                return real(*args, **named)

        setattr(owner, name, call)

    def watch_stream(self, owner: Any, name: str, phase: str) -> None:
        """The same for a generator."""
        real = getattr(owner, name)

        def call(*args: Any, **named: Any) -> Iterator[Any]:
            with self.during(phase):
                yield from real(*args, **named)

        setattr(owner, name, call)

    def around(self, owner: Any, name: str, before: Traced | None, after: Traced | None) -> None:
        """Have `before` and `after` called with what a call is called with."""
        real = getattr(owner, name)

        def call(*args: Any, **named: Any) -> Any:
            if before is not None:
                before(*args, **named)
            result = real(*args, **named)
            if after is not None:
                after(*args, **named)
            return result

        setattr(owner, name, call)

    # -- who is watched, and what must not happen twice --------------------------------------------

    def server(self) -> None:
        """A server's phases and trace."""
        self.watch(UploadStore, "create", "upload")
        self.watch_stream(UploadStore, "append", "upload")
        for owner, name in ((UploadStore, "commit"), (Journal, "accept")):
            self.watch(owner, name, "commit")
        for owner, name in ((loop, "settle"), (loop, "next_state"), (Journal, "close_round")):
            self.watch(owner, name, "aggregate")
        self.watch(RemoteEngine, "_post", "broadcast")
        self.watch_stream(Bulk, "download", "broadcast")
        self.around(UploadStore, "create", self._reached, None)
        self.around(Journal, "accept", None, self._accepted)
        self.around(Journal, "close_round", self._keep_evidence, None)
        self.around(RemoteEngine, "_post", self._posted, None)

    def site(self) -> None:
        """A site's phases and trace."""
        for name in ("fetch_bundle", "_state"):
            self.watch(join, name, "download")
        for owner, name in ((Ledger, "reserve"), (client_round, "_trained_update")):
            self.watch(owner, name, "train")
        for owner, name in ((Outbox, "store"), (Ledger, "charge")):
            self.watch(owner, name, "store")
        self.watch(Channel, "upload", "upload")
        self.around(client_round, "_trained_update", self._trains, None)
        self.around(Channel, "upload", self._sends, self._acknowledged)

    def _reached(self, store: Any, binding: Any, *_: Any) -> None:
        path = self._home / binding.site / "policy.ledger.jsonl"
        entries = {entry.key: entry.digest for entry in Ledger(path).entries()}
        charged = entries.get(f"{binding.run_id}/{binding.round}") == binding.digest
        facts = {"site": binding.site, "round": binding.round, "digest": binding.digest}
        self.trace("reached", charged=charged, **facts)

    def _accepted(self, journal: Any, round: int, client: str, *_: Any) -> None:
        self.trace("accepted", site=client, round=round)

    def _posted(self, engine: Any, task: Any, cohort: Any, *_: Any) -> None:
        self.trace("posted", round=task.round, sites=list(cohort))

    def _keep_evidence(self, journal: Any, round: int, *_: Any) -> None:
        kept = self._home / "evidence"
        kept.mkdir(exist_ok=True)
        for update in journal.received(round):
            (kept / update.digest).write_bytes(journal.payload(update.digest))

    def _trains(self, site: Any, adapter: Any, task: Any, *_: Any) -> None:
        # Not `Outbox.stored`: a planted bug may sit there.
        name = f"{task.run_id}-{task.round}.update"
        stored = any(path.name == name for path in site.folder.rglob("*.update"))
        self.trace("trains", site=site.info.name, round=task.round, stored=stored)

    def _sends(self, channel: Any, binding: Any, *_: Any) -> None:
        facts = {"site": binding.site, "round": binding.round, "digest": binding.digest}
        self.trace("sends", **facts)

    def _acknowledged(self, channel: Any, binding: Any, *_: Any) -> None:
        self.trace("acknowledged", site=binding.site, round=binding.round)


def _conftest() -> Any:
    path = Path(__file__).resolve().parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>"
    )


def _settings(home: Path, port: int) -> ServerSettings:
    return ServerSettings(home / "server", home / "pki", f"localhost:{port}", "127.0.0.1:0")


def _watcher() -> Watcher:
    say = lambda line: print(line, flush=True)  # noqa: E731
    return Watcher(say, no_progress, lambda metrics: say(f"round {metrics['round']}"), str)
